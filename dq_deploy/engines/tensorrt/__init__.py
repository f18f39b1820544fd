"""TensorRT and TensorRT-RTX, which share all but a few settings: their builders, and their engines on a GPU."""
