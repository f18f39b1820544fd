"""Which options go together. Each rule is a function that raises ValueError, with what to change."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from ..choices import Dilation, Rounding
from .option_types import LEAST_BITS, MOST_SIGNIFICANT

if TYPE_CHECKING:
    from . import QuantizeConfig

_FLOAT_PRODUCTS = {
    "fp8": (8, (2, 3, 4, 8), "beside FP8 weights have 8 bits (FP8) or 2 to 4 (INT4)"),
    "nvfp4": (4, (4, 8), "layers have 4 bits (NVFP4) or 8 (FP8)"),
}
"""Of products that are floats: the bits of activations, those that weights may have, and this in words."""
_OF_ACTIVATIONS = (
    "softmax_bits", "dilation_relaxation", "smoothquant_alpha", "activations", "rotation", "zero_points", "output_bias", "skip_halves",
)  # fmt: skip


def floats_fit(config: QuantizeConfig) -> None:
    """Products of floats have the bits that such floats have."""
    if config.products not in _FLOAT_PRODUCTS:
        return
    bits, of_weights, in_words = _FLOAT_PRODUCTS[config.products]
    right = config.activation_bits == bits
    problems = [] if right else [f"activation_bits is {config.activation_bits}, and {config.products.upper()} has {bits}"]
    asked = {"weight_bits": config.weight_bits, **{f"keep {pattern}": bits for pattern, bits in config.keep.items()}}
    wrong = [f"{name} is {given}" for name, given in asked.items() if given not in (*of_weights, "float")]
    if wrong:
        problems.append(f"{', '.join(wrong)}, and {in_words}")
    if config.products == "nvfp4" and config.weight_bits == _FLOAT_PRODUCTS["fp8"][0]:
        problems.append("weight_bits is 8: take the preset fp8")
    if config.products == "nvfp4" and config.dilation is not Dilation.NONE:
        problems.append(f"dilation is {config.dilation.value}, and a block's own scale leaves it nothing to gain: leave it out")
    if config.softmax_bits != type(config).model_fields["softmax_bits"].default:
        problems.append(f"softmax_bits would be ignored: attention stays in float beside {config.products.upper()}")
    if config.codebook is not None:
        problems.append("codewords are integers of 8 bits, which floats of so many have no numbers for: leave the codebook out")
    if problems:
        raise ValueError(f"products {config.products}: {'; '.join(problems)}")


def nothing_is_ignored(config: QuantizeConfig) -> None:
    """Nothing is chosen about activations that stay float, and no blocks where they do not."""
    defaults = type(config).model_fields
    given = [name for name in _OF_ACTIVATIONS if getattr(config, name) != defaults[name].default]
    if config.weight_only and config.dilation not in (Dilation.AUTO, Dilation.NONE):
        given.append("dilation")
    if config.weight_only and given:
        raise ValueError(f"activation_bits 16 leaves activations in float, where {', '.join(given)} would be ignored: leave it out")
    if not config.weight_only and config.weight_block != defaults["weight_block"].default:
        raise ValueError(
            f"weight_block {config.weight_block} is for float activations (preset w4a16): beside integer ones TensorRT refuses blocks of "
            "weights, and an output channel has one scale. Leave it out; where 4 bits lose too much, take more bits for some layers "
            "(--auto-bits), and for fewer bytes codebooks (preset vq3a8 or vq2a8)"
        )


def sizes_differ(config: QuantizeConfig) -> None:
    """Several sizes are different ones, with samples for each."""
    said = ",".join(f"{height}x{width}" for height, width in config.sizes)
    if config.sizes and (len(config.sizes) < 2 or len(set(config.sizes)) < len(config.sizes)):
        raise ValueError(f"sizes takes two sizes or more, all different, not {said}: one size of a picture is --height and --width")
    if len(set(config.tokens)) < len(config.tokens):
        raise ValueError(f"tokens takes lengths that are all different, not {','.join(map(str, config.tokens))}")
    count = max(1, len(config.sizes)) + max(1, len(config.tokens)) - 1
    if count > 1 and config.calibration_samples < 2 * count:
        raise ValueError(f"calibration_samples is {config.calibration_samples}, and each of {count} sizes needs two of them at the least")


def codebook_fits(config: QuantizeConfig) -> None:
    """A codebook is fitted to samples, of integers beside integers."""
    if config.codebook is None:
        return
    bits = config.codebook.made().bits
    if bits != config.weight_bits:
        raise ValueError(f"weight_bits is {config.weight_bits}, and the codebook has {bits} bits a weight: leave one of them out")
    if config.weight_only:
        raise ValueError("a codebook goes with integer activations, and activation_bits is 16")
    if config.low_rank:
        raise ValueError("low_rank is for weights that have a code each, and a codebook has none: leave one of them out")
    if config.rounding is Rounding.NEAREST:
        raise ValueError("a codebook is fitted to the calibration samples: rounding nearest would not be used")


def widths_are_nested(config: QuantizeConfig) -> None:
    """Widths are the most significant bits of one another, and weights have them."""
    widths = config.matryoshka
    if not widths:
        return
    said = ",".join(map(str, widths))
    if widths[0] != MOST_SIGNIFICANT or len(widths) < 2 or widths[-1] < LEAST_BITS or any(a <= b for a, b in pairwise(widths)):
        raise ValueError(
            f"matryoshka takes two widths or more, descending from {MOST_SIGNIFICANT} to {LEAST_BITS} at the least (such as 8,6,4,3), "
            f"not {said}"
        )
    if config.weight_only:
        raise ValueError("matryoshka is for weights beside integer activations, and activation_bits 16 leaves these in float")
    if config.products in _FLOAT_PRODUCTS:
        raise ValueError(f"matryoshka slices integers, and products {config.products} has others: leave one of them out")
    if config.codebook is not None:
        raise ValueError("matryoshka slices codes of single weights, and a codebook has none: leave one of them out")
    if config.weight_bits != MOST_SIGNIFICANT:
        raise ValueError(
            f"matryoshka {said} stores {MOST_SIGNIFICANT}-bit weights, and weight_bits (of the preset) is {config.weight_bits}: leave "
            "the preset out, give activation_bits alone, and choose the width when you export"
        )


RULES = (floats_fit, nothing_is_ignored, sizes_differ, codebook_fits, widths_are_nested)
"""In the order in which they are asked."""
