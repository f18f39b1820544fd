"""From an artefact on disk to the engine that runs it: what its files must be, which engine takes it, at which sizes."""
