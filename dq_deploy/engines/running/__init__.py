"""What every engine that can run here has in common, and a schedule of several."""
