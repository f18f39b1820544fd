"""Rounding of weights: nearest codes beside GPTQ, untrained and as the start of distillation."""
