"""How many bits each layer gets: what a layer's rounding costs the network, and the choice within a budget."""
