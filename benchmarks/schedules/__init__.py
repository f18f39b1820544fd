"""What tables made for one schedule are worth with another, by nearest and by interpolated row: ``python -m benchmarks.schedules``."""
