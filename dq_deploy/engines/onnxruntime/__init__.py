"""ONNX Runtime: the reference executor, and the engine that is there wherever the package is."""
