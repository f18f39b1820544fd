"""What a user can choose about quantization, validated before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ..artifacts.records import Record
from ..errors import UsageError, did_you_mean
from ..formats import Activations, NumberFormat, of_bits
from ..formats.codebook import Codebook
from ..formats.presets import CODEBOOKS, PRESETS
from .choices import Dilation, Distillation, InitialRange, Rotation, Rounding, Sampler, SkipHalves
from .methods import DILATEQUANT, METHODS

INTEGER_PRESETS = tuple(
    name for name, filled in PRESETS.items() if name not in CODEBOOKS and of_bits(filled["activation_bits"], filled.get("products")).integer
)
"""The presets whose products are of integers, each weight with one of its own."""

_FLOAT_PRODUCTS = {
    "fp8": (8, (2, 3, 4, 8), "beside FP8 weights have 8 bits (FP8) or 2 to 4 (INT4)"),
    "nvfp4": (4, (4, 8), "layers have 4 bits (NVFP4) or 8 (FP8)"),
}
"""Of products that are floats: the bits of activations, those that weights may have, and this in words."""
_OF_ACTIVATIONS = (
    "softmax_bits", "dilation_relaxation", "smoothquant_alpha", "activations", "rotation", "zero_points", "output_bias", "skip_halves",
)  # fmt: skip

FIRST, LAST = "@first", "@last"
"""Patterns of ``keep`` for the layers that read the model's input and write its output."""


GPTQ_ACTIVATION_BITS = 8
"""Least bits of activations with which distillation starts from GPTQ under AUTO: with 4 it ended worse than from nearest codes."""


MOST_SIGNIFICANT = 8
"""Bits of the codes that others are the most significant bits of."""


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a number is needed")
    return value


def _is_number(annotation: Any) -> bool:
    """Whether an option is a number, or none."""
    return bool({int, float} & {annotation, *get_args(annotation)})


_LEAST_BITS = 2
_LEAST_CHOSEN_BITS = 6
Bits = Annotated[int, BeforeValidator(_no_bool), Field(ge=_LEAST_BITS, le=8)]


def _height_and_width(value: Any) -> Any:
    """A size as a pair, from ``512x768`` too."""
    if not isinstance(value, str):
        return value
    parts = value.lower().replace("×", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise ValueError("a size is height x width, such as 512x768")
    return tuple(int(part) for part in parts)


Edge = Annotated[int, BeforeValidator(_no_bool), Field(ge=1)]
Size = Annotated[tuple[Edge, Edge], BeforeValidator(_height_and_width)]


def _problem(error: Mapping[str, Any]) -> str:
    """What is wrong with one option, with its value; or with several together."""
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        return f"{name}: no such option. {did_you_mean([name], QuantizeConfig.model_fields)}".strip()
    said = str(error["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(map(str, error['loc']))}: {said} (got {error['input']!r})" if error["loc"] else said


def under_current_names(given: dict[str, Any]) -> dict[str, Any]:
    """Options with ``temporal``, which is ``activations`` now, under its new name. Raises ValueError for both, and for no truth value."""
    if "temporal" not in given:
        return given
    temporal = given["temporal"]
    if "activations" in given or not isinstance(temporal, bool):
        raise ValueError(f"temporal is the former name of activations, true for per-timestep and false for static (got {temporal!r})")
    chosen = Activations.PER_TIMESTEP if temporal else Activations.STATIC
    return {name: value for name, value in given.items() if name != "temporal"} | {"activations": chosen}


def _by_bits(options: Mapping[str, Any]) -> Activations:
    """Where scales come from unless somebody says so: chosen by layer beside integers of 6 to 8 bits.

    With 4 bits trained tables are better than scales by token (docs/decisions/activation-scales.md).
    """
    bits = options.get("activation_bits")
    chosen = options.get("products", "int8") == "int8" and isinstance(bits, int) and _LEAST_CHOSEN_BITS <= bits <= 8
    return Activations.AUTO if chosen else Activations.PER_TIMESTEP


def _in_words(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _ignores_alpha(dilation: Any) -> bool:
    return dilation in (Dilation.NONE, Dilation.SYMMETRIC, Dilation.ASYMMETRIC, Dilation.LAYERWISE)


def _fitting(of_method: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A method's options without the α of a dilation that the user has replaced."""
    replaced = _ignores_alpha(given.get("dilation"))
    return {name: value for name, value in of_method.items() if not (replaced and name == "smoothquant_alpha")}


class CodebookOption(Record):
    """See ``formats.codebook.Codebook``."""

    length: int
    books: int

    @model_validator(mode="after")
    def _known(self) -> CodebookOption:
        self.made()
        return self

    def made(self) -> Codebook:
        """The codebook."""
        return Codebook(self.length, self.books)


class QuantizeConfig(Record):
    """Options of ``dq_deploy.quantize``. Bits are of the codes; everything is recorded in the checkpoint's manifest."""

    method: str = DILATEQUANT.name
    """The published method whose options were filled in (methods/)."""
    weight_bits: Bits = 8
    activation_bits: Bits | Literal[16] = 8
    """16: activations stay float (fp16 in an engine), only weights are quantized, and there are no tables."""
    products: Literal["int8", "fp8", "nvfp4"] = "int8"
    """The number format in which products are computed. fp8: activations, and weights of 8 bits, are E4M3 floats without zero-points;
    weights of up to 4 bits are integers still, multiplied as such floats; attention stays in float. nvfp4: linear layers have E2M1 floats
    in blocks of 16, but for those that lose too much so, which are fp8 as convolutions are (docs/nvfp4.md)."""
    weight_block: Literal[0, 32, 64, 128] = 64
    """Input channels of a linear layer that share a scale where only weights are quantized; 0: all of an output channel. Beside integer
    activations a scale is for all of an output channel always: TensorRT refuses blocks there."""
    codebook: CodebookOption | None = None
    """Weights as sums of codewords, of ``weight_bits`` = 8 × books / length each: a layer for which that takes fewer bytes than INT4. The
    others have 4 bits."""
    low_rank: int = Field(default=0, ge=0, le=256)
    """Rank of the float branch beside linear layers of up to 4 bits, which takes over what is largest of their weights; 0: none
    (SVDQuant, graph/low_rank.py). A layer that would be no smaller with it than in 8 bits has none."""
    softmax_bits: Bits = 8
    """Bits of attention probabilities, whatever ``activation_bits`` are: of 64 tokens' nearly all are below half a step of 4 bits, and the
    INT8 product that reads them costs the same."""
    steps: int = Field(default=20, ge=1, le=1000)
    """T: steps of the calibration trajectories, and rows of every scale table."""
    dilation: Dilation = Dilation.AUTO
    dilation_relaxation: float = Field(default=0.0, ge=0, le=1)
    """r: dilation may let an output channel's weight range grow by this share where the measured output error falls."""
    smoothquant_alpha: float = Field(default=0.5, ge=0, le=1)
    """α of SmoothQuant's factors max|x_k|^α / max|W_k|^(1−α): how much of an activation's range moves to the weights."""
    activations: Activations = Activations.PER_TIMESTEP
    """Scales of activations: a row of a table for each calibrated timestep (Temporal Parallel Quantizer, §4.2), one for each token, one
    for all, or of the first two what measures better for each linear layer, which ``build`` takes beside integers of 6 to 8 bits.
    Options of before there was a choice say ``temporal`` true or false: per-timestep or static."""
    rotation: Annotated[Rotation, BeforeValidator(_in_words)] = Rotation.NONE
    zero_points: bool = True
    """False makes every activation symmetric."""
    initial_range: InitialRange = InitialRange.AUTO
    rounding: Rounding = Rounding.AUTO
    matryoshka: tuple[Annotated[int, BeforeValidator(_no_bool)], ...] = ()
    """Widths that weights can be sliced to at export, descending from 8: their codes of 8 bits hold those of fewer as their most
    significant bits, and are rounded and trained for all of them (arXiv 2602.03537). Layers whose bits ``keep`` says have one width."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Share of a timestep's values that a percentile range covers, in percent, counted from both ends."""
    output_bias: bool | None = None
    """Subtract from the network's output its mean error at each timestep, as measured on the calibration trajectories. None: where nothing
    is trained or training starts from GPTQ's codes; from nearest ones it leaves little (docs/decisions/output-bias.md)."""
    skip_halves: SkipHalves = SkipHalves.SPLIT
    keep: dict[str, Bits | Literal["float"]] = Field(default={FIRST: "float", LAST: 8})
    """Layer-name pattern (fnmatch) → bits, or "float" to leave the layer alone; of several that match, the last one given counts."""
    max_float_share: float = Field(default=0.02, ge=0, le=1)
    """Largest share of the multiply-accumulates that may stay in float."""
    calibration_samples: int = Field(default=64, ge=2)
    """Trajectories (seeds); an eighth of them, at least one, is held out to judge the distillation."""
    reference_samples: int = Field(default=4, ge=1)
    """Further seeds, kept in the checkpoint for ``check``; never used for calibration."""
    final_samples: int | None = Field(default=None, ge=0)
    """Of these, how many are sampled to the end to see what each step's error costs the final sample. None: two, or one where nothing is
    trained and that would take a larger share of the time; 0: it is not measured."""
    sizes: tuple[Size, ...] = ()
    """Heights and widths to calibrate at, each on its share of the samples; the graph then takes what lies between. In pixels where a
    pipeline draws, as ``height`` and ``width`` are, and else in the units of the network's own samples. () is one size, the model's own."""
    tokens: tuple[Annotated[int, Field(ge=3), BeforeValidator(_no_bool)], ...] = ()
    """Lengths of a pipeline's text, as its ``max_sequence_length`` has them: one, or several to calibrate at, which leave it free in the
    graph as ``sizes`` do height and width. () is the pipeline's own."""
    sampler: Sampler = Sampler.DDIM
    guidance_scale: float | None = Field(default=None, ge=0, lt=math.inf)
    """Classifier-free guidance of the calibration trajectories; the conditional and the unconditional half are both calibrated."""
    iterations: int = Field(default=200, ge=0)
    """Distillation steps per block; 0 turns distillation off."""
    judged_samples: int = Field(default=16, ge=0)
    """Further seeds that the network draws before and after distillation, with output bias and without: what ends nearest to the float
    network's samples is kept; as many as the calibration has, at most. 0: what is trained is kept, whatever it draws. Of several widths it
    is."""
    distillation: Distillation = Distillation.BLOCK
    train: tuple[str, ...] = ("*",)
    """Layers (fnmatch patterns of their names) whose weights, scales and tables are trained."""
    patience: int = Field(default=0, ge=0)
    """Evaluations without a better held-out loss after which a block stops; 0 trains to the last iteration."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the distillation's forward and backward passes (autocast); parameters stay fp32."""
    batch_size: int = Field(default=32, ge=1)
    lr_scale: float = Field(default=1e-3, gt=0, lt=math.inf)
    lr_weight: float = Field(default=0.02, gt=0, lt=math.inf)
    """Steps of the weights per iteration, in units of their quantization step."""
    seed: int = Field(default=0, ge=0, lt=2**32)

    @property
    def several_sizes(self) -> bool:
        """Whether the graph's inputs have free sizes."""
        return bool(self.sizes) or len(self.tokens) > 1

    @property
    def weight_only(self) -> bool:
        """Whether activations stay float."""
        return not self.activation_format.scaled

    @property
    def weight_format(self) -> NumberFormat:
        """What weights are, unless ``keep`` says otherwise."""
        return of_bits(self.weight_bits, self.products)

    @property
    def activation_format(self) -> NumberFormat:
        """What activations are; a float that is not scaled stands for whatever type the rest of the graph has."""
        return of_bits(self.activation_bits, self.products)

    @property
    def rounds_by_gptq(self) -> bool:
        """Whether weights are rounded by GPTQ."""
        if self.rounding is Rounding.AUTO:
            return self.codebook is not None or not self.iterations or self.activation_bits >= GPTQ_ACTIVATION_BITS
        return self.rounding is Rounding.GPTQ

    @property
    def corrects_output(self) -> bool:
        """Whether the output's mean error is subtracted, unless what is drawn decides."""
        chosen = (not self.iterations or self.rounds_by_gptq) if self.output_bias is None else self.output_bias
        return chosen and self.may_correct_output

    @property
    def may_correct_output(self) -> bool:
        """Whether the output's mean error may be subtracted: not where activations stay float."""
        return self.output_bias is not False and not self.weight_only

    @property
    def drawn_to_judge(self) -> int:
        """``judged_samples`` as they are."""
        return min(self.judged_samples, self.calibration_samples)

    @property
    def judges_distillation(self) -> bool:
        """Whether what the network draws decides if distillation is kept."""
        return bool(self.iterations and self.judged_samples and not self.matryoshka)

    @property
    def sampled_to_the_end(self) -> int:
        """``final_samples`` as they are."""
        chosen = (2 if self.iterations else 1) if self.final_samples is None else self.final_samples
        return min(chosen, self.reference_samples)

    @model_validator(mode="before")
    @classmethod
    def _former_names(cls, given: Any) -> Any:
        return under_current_names(given) if isinstance(given, dict) else given

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_values(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse ``true`` for a number, which Python takes for 1."""
        return _no_bool(value) if _is_number(cls.model_fields[str(info.field_name)].annotation) else value

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> QuantizeConfig:
        """Refuse choices about activations where these stay float, and blocks where they do not."""
        if self.products in _FLOAT_PRODUCTS:
            self._check_floats()
        defaults = type(self).model_fields
        given = [name for name in _OF_ACTIVATIONS if getattr(self, name) != defaults[name].default]
        if self.weight_only and self.dilation not in (Dilation.AUTO, Dilation.NONE):
            given.append("dilation")
        if self.weight_only and given:
            raise ValueError(f"activation_bits 16 leaves activations in float, where {', '.join(given)} would be ignored: leave it out")
        if not self.weight_only and self.weight_block != defaults["weight_block"].default:
            raise ValueError(
                f"weight_block {self.weight_block} is for float activations (preset w4a16): beside integer ones TensorRT refuses blocks of "
                "weights, and an output channel has one scale. Leave it out; where 4 bits lose too much, take more bits for some layers "
                "(--auto-bits), and for fewer bytes codebooks (preset vq3a8 or vq2a8)"
            )
        return self

    @model_validator(mode="after")
    def _sizes_differ(self) -> QuantizeConfig:
        said = ",".join(f"{height}x{width}" for height, width in self.sizes)
        if self.sizes and (len(self.sizes) < 2 or len(set(self.sizes)) < len(self.sizes)):
            raise ValueError(f"sizes takes two sizes or more, all different, not {said}: one size of a picture is --height and --width")
        if len(set(self.tokens)) < len(self.tokens):
            raise ValueError(f"tokens takes lengths that are all different, not {','.join(map(str, self.tokens))}")
        count = max(1, len(self.sizes)) + max(1, len(self.tokens)) - 1
        if count > 1 and self.calibration_samples < 2 * count:
            raise ValueError(f"calibration_samples is {self.calibration_samples}, and each of {count} sizes needs two of them at the least")
        return self

    @model_validator(mode="after")
    def _a_codebook_is_fitted(self) -> QuantizeConfig:
        if self.codebook is None:
            return self
        bits = self.codebook.made().bits
        if bits != self.weight_bits:
            raise ValueError(f"weight_bits is {self.weight_bits}, and the codebook has {bits} bits a weight: leave one of them out")
        if self.weight_only:
            raise ValueError("a codebook goes with integer activations, and activation_bits is 16")
        if self.low_rank:
            raise ValueError("low_rank is for weights that have a code each, and a codebook has none: leave one of them out")
        if self.rounding is Rounding.NEAREST:
            raise ValueError("a codebook is fitted to the calibration samples: rounding nearest would not be used")
        return self

    def _check_floats(self) -> None:
        bits, of_weights, in_words = _FLOAT_PRODUCTS[self.products]
        right = self.activation_bits == bits
        problems = [] if right else [f"activation_bits is {self.activation_bits}, and {self.products.upper()} has {bits}"]
        asked = {"weight_bits": self.weight_bits, **{f"keep {pattern}": bits for pattern, bits in self.keep.items()}}
        wrong = [f"{name} is {given}" for name, given in asked.items() if given not in (*of_weights, "float")]
        if wrong:
            problems.append(f"{', '.join(wrong)}, and {in_words}")
        if self.products == "nvfp4" and self.weight_bits == _FLOAT_PRODUCTS["fp8"][0]:
            problems.append("weight_bits is 8: take the preset fp8")
        if self.products == "nvfp4" and self.dilation is not Dilation.NONE:
            problems.append(f"dilation is {self.dilation.value}, and a block's own scale leaves it nothing to gain: leave it out")
        if self.softmax_bits != type(self).model_fields["softmax_bits"].default:
            problems.append(f"softmax_bits would be ignored: attention stays in float beside {self.products.upper()}")
        if self.codebook is not None:
            problems.append("codewords are integers of 8 bits, which floats of so many have no numbers for: leave the codebook out")
        if problems:
            raise ValueError(f"products {self.products}: {'; '.join(problems)}")

    @model_validator(mode="after")
    def _widths_are_nested(self) -> QuantizeConfig:
        """Refuse widths that are no most significant bits of one another, and weights that have none."""
        widths = self.matryoshka
        if not widths:
            return self
        said = ",".join(map(str, widths))
        if widths[0] != MOST_SIGNIFICANT or len(widths) < 2 or widths[-1] < _LEAST_BITS or any(a <= b for a, b in pairwise(widths)):
            raise ValueError(
                f"matryoshka takes two widths or more, descending from {MOST_SIGNIFICANT} to {_LEAST_BITS} at the least (such as 8,6,4,3), "
                f"not {said}"
            )
        if self.weight_only:
            raise ValueError("matryoshka is for weights beside integer activations, and activation_bits 16 leaves these in float")
        if self.products in _FLOAT_PRODUCTS:
            raise ValueError(f"matryoshka slices integers, and products {self.products} has others: leave one of them out")
        if self.codebook is not None:
            raise ValueError("matryoshka slices codes of single weights, and a codebook has none: leave one of them out")
        if self.weight_bits != MOST_SIGNIFICANT:
            raise ValueError(
                f"matryoshka {said} stores {MOST_SIGNIFICANT}-bit weights, and weight_bits (of the preset) is {self.weight_bits}: leave "
                "the preset out, give activation_bits alone, and choose the width when you export"
            )
        return self

    @classmethod
    def build(cls, preset: str = "w8a8", **options: Any) -> QuantizeConfig:
        """A preset's configuration with what the ``method`` among ``options`` fills in, and ``options`` (None = not given) on top.

        Raises UsageError naming every unknown key and bad value at once.
        """
        if preset not in PRESETS:
            near = did_you_mean([preset], PRESETS)
            raise UsageError(
                f"unknown preset '{preset}'", f"{near}presets: {', '.join(PRESETS)}; or set --weight-bits and --activation-bits"
            )
        try:
            given = under_current_names({key: value for key, value in options.items() if value is not None})
        except ValueError as error:
            raise UsageError(f"bad quantization options: {error}") from None
        method = given.get("method", DILATEQUANT.name)
        if method not in METHODS:
            raise UsageError(f"unknown method '{method}'", f"{did_you_mean([method], METHODS)}methods: {', '.join(METHODS)}")
        of_preset, of_method = PRESETS[preset], _fitting(METHODS[method].options, given)
        dilation = {"dilation": cls().dilation, **of_preset, **of_method, **given}["dilation"]
        if given.get("smoothquant_alpha", cls().smoothquant_alpha) != cls().smoothquant_alpha and _ignores_alpha(dilation):
            raise UsageError(f"smoothquant_alpha would be ignored: dilation is {dilation}", "leave it out, or take dilation smoothquant")
        given["keep"] = {**cls().keep, **of_preset.get("keep", {}), **given.get("keep", {})}
        try:
            return cls._filled(of_preset, {**of_method, **given})
        except ValidationError as error:
            problems = "; ".join(map(_problem, error.errors()))
        with suppress(ValidationError):
            cls._filled(of_preset, given)  # all is well without what the method fills in
            raise UsageError(
                f"method {method} does not go with preset {preset} and the options beside it: {problems}",
                f"the method sets {', '.join(of_method)}: take another preset, or leave the method out",
            )
        raise UsageError(f"bad quantization options: {problems}")

    @classmethod
    def _filled(cls, preset: Mapping[str, Any], given: Mapping[str, Any]) -> QuantizeConfig:
        """What a preset says where nobody else does. Raises ValidationError."""
        filled = dict(preset)
        if isinstance(codebook := given.get("codebook"), dict) and "codebook" not in filled:
            with suppress(ValueError, KeyError, TypeError):  # which building it says below
                filled["weight_bits"] = Codebook(**codebook).bits
        return cls(**{"activations": _by_bits({**filled, **given}), **filled, **given})
