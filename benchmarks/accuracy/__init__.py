"""The accuracy harness: every method quantizes the same models, from the same data, with the same budget, judged by the same metrics."""
