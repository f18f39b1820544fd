"""Engines: build, run, inspect and time the exported graphs."""
