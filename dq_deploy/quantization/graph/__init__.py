"""A model as an FX graph: captured, rewritten, planned, cut into blocks, folded."""
