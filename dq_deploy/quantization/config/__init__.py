"""What a user can choose about quantization, validated before anything runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, ValidationInfo, field_validator, model_validator

from ...artifacts.records import Record
from ...errors import UsageError, did_you_mean
from ...formats import Activations, NumberFormat, of_bits
from ..choices import Dilation, Distillation, InitialRange, Rotation, Rounding, Sampler, SkipHalves
from ..methods import DILATEQUANT
from .filling import filled, fitting, ignores_alpha, method_in, preset_named, under_current_names
from .option_types import Bits, CodebookOption, Size, in_words, is_number, no_bool
from .rules import RULES

FIRST, LAST = "@first", "@last"
"""Patterns of ``keep`` for the layers that read the model's input and write its output."""

GPTQ_ACTIVATION_BITS = 8
"""Least bits of activations with which distillation starts from GPTQ under AUTO: with 4 it ended worse than from nearest codes."""


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
    rotation: Annotated[Rotation, BeforeValidator(in_words)] = Rotation.NONE
    zero_points: bool = True
    """False makes every activation symmetric."""
    initial_range: InitialRange = InitialRange.AUTO
    rounding: Rounding = Rounding.AUTO
    matryoshka: tuple[Annotated[int, BeforeValidator(no_bool)], ...] = ()
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
    tokens: tuple[Annotated[int, Field(ge=3), BeforeValidator(no_bool)], ...] = ()
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
        return no_bool(value) if is_number(cls.model_fields[str(info.field_name)].annotation) else value

    @model_validator(mode="after")
    def _options_go_together(self) -> QuantizeConfig:
        for rule in RULES:
            rule(self)
        return self

    @classmethod
    def build(cls, preset: str = "w8a8", **options: Any) -> QuantizeConfig:
        """A preset's configuration with what the ``method`` among ``options`` fills in, and ``options`` (None = not given) on top.

        Raises UsageError naming every unknown key and bad value at once.
        """
        of_preset, defaults = preset_named(preset), cls()
        try:
            given = under_current_names({key: value for key, value in options.items() if value is not None})
        except ValueError as error:
            raise UsageError(f"bad quantization options: {error}") from None
        method = method_in(given)
        of_method = fitting(method, given)
        dilation = {"dilation": defaults.dilation, **of_preset, **of_method, **given}["dilation"]
        if given.get("smoothquant_alpha", defaults.smoothquant_alpha) != defaults.smoothquant_alpha and ignores_alpha(dilation):
            raise UsageError(f"smoothquant_alpha would be ignored: dilation is {dilation}", "leave it out, or take dilation smoothquant")
        given["keep"] = {**defaults.keep, **of_preset.get("keep", {}), **given.get("keep", {})}
        try:
            return cls(**filled(of_preset, {**of_method, **given}))
        except ValidationError as error:
            problems = "; ".join(map(_problem, error.errors()))
        with suppress(ValidationError):
            cls(**filled(of_preset, given))  # all is well without what the method fills in
            raise UsageError(
                f"method {method.name} does not go with preset {preset} and the options beside it: {problems}",
                f"the method sets {', '.join(of_method)}: take another preset, or leave the method out",
            )
        raise UsageError(f"bad quantization options: {problems}")


def _problem(error: Mapping[str, Any]) -> str:
    """What is wrong with one option, with its value; or with several together."""
    if error["type"] == "extra_forbidden":
        name = str(error["loc"][-1])
        return f"{name}: no such option. {did_you_mean([name], QuantizeConfig.model_fields)}".strip()
    said = str(error["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(map(str, error['loc']))}: {said} (got {error['input']!r})" if error["loc"] else said
