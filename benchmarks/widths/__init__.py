"""One checkpoint of several widths beside one for each of them."""
