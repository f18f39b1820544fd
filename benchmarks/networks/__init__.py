"""Networks that this project was not tuned for, as their users have them: ``python -m benchmarks.networks --help``."""
