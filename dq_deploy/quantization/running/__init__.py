"""What surrounds a long run: its device and processes, resuming, and the estimate beforehand."""
