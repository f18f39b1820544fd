"""What weight dilation is worth before any training, over several calibration seeds: ``python -m benchmarks.dilation``."""
