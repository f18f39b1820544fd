"""What per-timestep scales cost in a TensorRT-RTX engine: ``python -m benchmarks.engines``."""
