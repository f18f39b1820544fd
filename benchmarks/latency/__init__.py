"""How fast the quantized models are on this machine's CPU, beside what a user would run instead: ``python -m benchmarks.latency``."""
