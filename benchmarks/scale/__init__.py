"""A Stable-Diffusion-1.5-sized UNet from module to engine: time, memory and disk of every stage."""
