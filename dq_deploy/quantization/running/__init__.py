"""What surrounds a long run: its device and processes, and resuming."""
