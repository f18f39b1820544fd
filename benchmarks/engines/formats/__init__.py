"""Networks in every number format as they are exported by default, and what a GPU could make of the plan at most."""
