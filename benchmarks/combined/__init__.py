"""Schedules over timesteps: what the images gain when some steps get a better engine, and whether their measured costs foretell it."""
