"""Block-wise knowledge distillation (DilateQuant, arXiv 2409.14307, §4.3)."""
