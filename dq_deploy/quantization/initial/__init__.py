"""First scales and dilations, before any training."""
