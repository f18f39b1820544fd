"""What a quantization would take, from a few passes measured now."""
