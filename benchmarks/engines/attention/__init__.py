"""When TensorRT-RTX makes one kernel of an attention, and what that saves: ``python -m benchmarks.engines.attention``."""
