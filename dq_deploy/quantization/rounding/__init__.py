"""Rounding of weights by what it does to a layer's output: GPTQ (Frantar et al., arXiv 2210.17323).

``columns`` and ``moments`` are the mathematics, ``groups`` says which layers are rounded together, ``layerwise`` streams the calibration
samples through the network, layer by layer.
"""
