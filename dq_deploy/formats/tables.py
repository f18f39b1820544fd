"""Names and layout of what a checkpoint and a graph hold of a quantizer, a layer and a correction.

``<quantizer>.scale`` fp32 [T] and ``<quantizer>.zero_point`` int8 [T] are tables with a row for each calibrated timestep, ascending; in a
bundle with interpolated rows between these, or one element where all rows are the same, and zero-points as floats or as uint8. Of a scale
that is constant a graph may have ``<quantizer>.inverse_scale`` [] instead. Of scales that are computed, s = α_t · max|x| / largest code, a
checkpoint has ``<quantizer>.clipping_ratio`` α fp32 [T], and a graph ``<quantizer>.relative_scale`` α / largest code.
``<correction>.table`` [T, C] is taken off the output.
"""

from __future__ import annotations

SCALE, ZERO_POINT, INVERSE_SCALE, TABLE = "scale", "zero_point", "inverse_scale", "table"
CLIPPING_RATIO, RELATIVE_SCALE = "clipping_ratio", "relative_scale"
DILATION, INVERSE_DILATION = "dilation", "inverse_dilation"
"""``<quantizer>.dilation`` [C]: what its channels are divided by first; a graph multiplies by the inverse."""
FOLDED = "folded_dilation"
"""``<quantizer>.folded_dilation`` [C]: the dilation before what computes the activation took it (quantization/graph/fold.py)."""
CODES, PACKED_CODES, WEIGHT_SCALE, BIAS = "weight.codes", "weight.packed_codes", "weight.scale", "bias"
CODEBOOK_CODES, CODEWORDS = "weight.codebook_codes", "weight.codewords"
"""Of a weight that is made of codewords: indices uint8 [O, K/d, M], for d of the K weights of an output and each of M books, and codewords
int8 [M, 256, d]; in a graph indices are int8, minus 128, one tensor a book."""
BLOCK_SCALE, GLOBAL_SCALE, WEIGHT_GLOBAL_SCALE = "weight.block_scale", "global_scale", "weight.global_scale"
"""Of FP4 codes: scales of blocks [O, C / 16] in E4M3, and what these are multiplied with, a power of two [], of either side."""
WEIGHT_ZERO_POINT, WEIGHT_SUM = "weight.zero_point", "weight.sum"
"""Of a layer: codes [O, ...], or these packed, their scales [O] or [O, B], and a bias [O]; in a graph also zero-points [O] (all 0) and the
sums of the codes of each output channel [O], which the activation's zero-point is multiplied with."""

BOUNDARIES, ROW = "dq_deploy.boundaries", "dq_deploy.row"
"""In a graph: the midpoints [R − 1] between the timesteps of a table's rows, and the row(s) that they select."""

UINT8_OFFSET = 128
"""From an int8 code to the uint8 code of the same number."""
