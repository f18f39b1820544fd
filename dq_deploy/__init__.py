"""Quantizes diffusion models with per-timestep scales and takes them to integer ONNX graphs and engines."""
