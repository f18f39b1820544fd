"""Whether a table row for each half of classifier-free guidance pays: ``python -m benchmarks.branches``."""
