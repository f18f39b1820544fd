"""Block-wise distillation against end-to-end distillation: peak memory, and quality over time."""
