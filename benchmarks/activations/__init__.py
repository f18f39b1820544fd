"""What each source of activation scales is worth where nothing is trained: ``python -m benchmarks.activations``."""
