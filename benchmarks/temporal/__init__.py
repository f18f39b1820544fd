"""What training every timestep's row in one pass is worth: ``python -m benchmarks.temporal``."""
