"""Artefacts as repositories of the Hugging Face hub: a model card, pushing, and loading a bundle by its id."""
