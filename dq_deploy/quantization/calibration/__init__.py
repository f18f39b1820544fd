"""What the model sees while it samples: trajectories, and where they come from."""
