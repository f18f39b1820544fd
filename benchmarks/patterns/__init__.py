"""What each engine makes of each quantized graph pattern: small real graphs, built with the real compilers."""
