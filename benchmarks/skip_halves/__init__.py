"""What a quantizer for each half of a concatenated skip is worth: ``python -m benchmarks.skip_halves``."""
