"""Several artefacts of one model that take turns along the timesteps."""
