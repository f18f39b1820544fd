"""Training of the built-in models from real data; no part of the package."""
