"""One bundle of several sizes beside one for each of them."""
