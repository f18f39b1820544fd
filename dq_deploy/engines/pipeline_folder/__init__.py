"""A whole pipeline with a bundle as its denoiser, for other tools."""
