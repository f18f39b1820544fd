"""The methods of the comparison. Each is a named configuration of the same code, or an outside tool."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dq_deploy.errors import UsageError
from dq_deploy.formats import Activations, of_bits
from dq_deploy.formats.presets import CODEBOOKS
from dq_deploy.formats.presets import PRESETS as OWN_PRESETS
from dq_deploy.quantization.config import QuantizeConfig
from dq_deploy.quantization.quantizers.ranges import resolve

from .settings import Family, Settings

Training = Literal["none", "block", "end-to-end"]
Tool = Literal["dq-deploy", "onnxruntime", "nncf", "torchao"]

DILATEQUANT = "dilatequant"
INTEGER_PRESETS = tuple(
    name
    for name, filled in OWN_PRESETS.items()
    if name not in CODEBOOKS and of_bits(filled["activation_bits"], filled.get("products")).integer
)
"""The presets whose products are of integers, each weight with one of its own."""
FLOAT_PRESETS = ("fp8", "w4a8-fp8", "nvfp4")
"""Presets whose products are of narrow floats: the rules that make other methods are for integers."""
PRESETS = (*INTEGER_PRESETS, *FLOAT_PRESETS)
WIDTHS = {"w8a8": 8, "w6a8": 6, "w4a8": 4, "w3a8": 3}
"""Presets that differ in the bits of the weights alone: two of them are none of the program's."""
FEW_BITS = ("w6a8", "w3a8", *CODEBOOKS)
"""Presets that no other table has than that of weights of few bits."""
ALONE, SLICED = "gptq-auto-untrained", "matryoshka-untrained"
"""What that table compares: a checkpoint for a width, and one of several that is sliced to it."""
UNJUDGED = QuantizeConfig(judged_samples=0)
"""The defaults of before what is drawn decided what is kept of the training: cells without such a setting are read with it."""
NAMES = {"method"}
"""Of a configuration: what it filled in is among the other options."""


@dataclass(frozen=True)
class Method:
    """A row of the table. ``options`` are fields of ``QuantizeConfig``; ``training`` says whether the budget's iterations are spent.

    An option that is None has what ``dq-deploy quantize`` gives it.
    """

    name: str
    label: str
    note: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Training = "none"
    tool: Tool = "dq-deploy"
    presets: tuple[str, ...] = tuple(INTEGER_PRESETS)
    families: tuple[Family, ...] = ("unet", "transformer")
    rival: bool = False

    def compared(self, preset: str, family: Family) -> bool:
        """Whether it is a row of the table of a preset and a family of networks."""
        return preset in self.presets and family in self.families

    @property
    def widths(self) -> tuple[int, ...]:
        """Bits of the weights that a checkpoint of this method can be sliced to; nothing: it has those of its preset."""
        return tuple(self.options.get("matryoshka", ()))

    def made_at(self, preset: str) -> tuple[str, dict[str, Any]]:
        """What ``dq-deploy quantize`` is given for a preset: one of its own, and the weights' bits where it has none of that name."""
        if self.widths:
            return "w8a8", {}
        return ("w8a8", {"weight_bits": WIDTHS[preset]}) if preset in WIDTHS and preset in FEW_BITS else (preset, {})

    def config(self, preset: str, settings: Settings, *, seed: int) -> QuantizeConfig:
        """The configuration of a cell."""
        named, bits = self.made_at(preset)
        options = {
            "steps": settings.steps,
            "calibration_samples": settings.calibration_samples,
            "batch_size": settings.batch_size,
            "max_float_share": settings.max_float_share,
            "iterations": self.iterations(settings),
            "output_bias": False,
            "rounding": "nearest",
            "judged_samples": 0,
            "seed": seed,
            **({} if "method" in self.options else {"activations": "per-timestep"}),  # a published method has its own
            **bits,
            **self.options,
        }
        options = {name: value for name, value in options.items() if value is not None}
        if self.training == "end-to-end":
            options["distillation"] = "end-to-end"
        return QuantizeConfig.build(named, **options)

    def iterations(self, settings: Settings) -> int:
        """Optimizer steps for each block, or for the network."""
        if self.training == "none":
            return 0
        return settings.iterations if self.training == "block" else round(settings.iterations * settings.end_to_end_factor)


_STATIC: dict[str, Any] = {"activations": "static", "dilation": "none"}
_TEMPORAL: dict[str, Any] = {"activations": "per-timestep", "dilation": "none"}

METHODS: tuple[Method, ...] = (
    Method("min-max", "min-max, static", "one scale a tensor for all timesteps, covering every value",
           {**_STATIC, "initial_range": "minmax"}, rival=True),
    Method("percentile", "percentile, static", "one scale a tensor, covering 99.99% of the values",
           {**_STATIC, "initial_range": "percentile"}, rival=True),
    Method("mse", "MSE, static", "one scale a tensor, the one with the least squared rounding error",
           {**_STATIC, "initial_range": "mse"}, rival=True),
    Method("smoothquant", "SmoothQuant-style", "one scale a tensor; factors √(max|x| / max|w|) move range from activations to weights",
           {**_STATIC, "dilation": "smoothquant"}, rival=True),
    Method("q-diffusion", "Q-Diffusion-style", "block reconstruction with one scale a tensor for all timesteps",
           _STATIC, "block", rival=True),
    Method("efficientdm", "EfficientDM-style", "a scale for each timestep without zero-points, block reconstruction",
           {**_TEMPORAL, "zero_points": False}, "block", rival=True),
    Method("quest", "QuEST-style", "a scale for each timestep; only time-embedding and attention layers are trained, as in the paper",
           {"method": "quest-paper"}, "block", rival=True),
    Method("quest-released", "QuEST-style, as released", "as its code does: only time-embedding and feed-forward layers are trained",
           {"method": "quest"}, "block", rival=True),
    Method("vidit-q", "ViDiT-Q-style", "a scale for each token, SmoothQuant's factors with α = 0.11 and a rotation, nothing trained",
           {"method": "vidit-q"}, families=("transformer",), rival=True),
    Method("end-to-end", "end-to-end distillation", "DilateQuant's quantizer, trained as a whole against the float network's output",
           {}, "end-to-end", rival=True),
    Method(DILATEQUANT, "DilateQuant", "error-aware dilation, tables, block distillation from the nearest codes",
           {}, "block"),
    Method("gptq", "DilateQuant from GPTQ's codes", "tables alone, and distillation starts from GPTQ",
           {"rounding": "gptq"}, "block", presets=PRESETS),
    Method("gptq-untrained", "WD + TPQ + GPTQ + output bias", "`quantize --iterations 0 --activations per-timestep`: nothing is trained",
           {"rounding": "gptq", "output_bias": True}, presets=(*PRESETS, *FEW_BITS)),
    Method("gptq-untrained-tokens", "GPTQ + output bias, per token", "the same with `--activations per-token`",
           {"rounding": "gptq", "output_bias": True, "activations": "per-token"}, presets=("w8a8", "w4a8", *FLOAT_PRESETS)),
    Method("gptq-untrained-low-rank", "GPTQ + output bias + low rank", "the same with `--low-rank 8`",
           {"rounding": "gptq", "output_bias": True, "low_rank": 8}, presets=("w4a4", "nvfp4")),
    Method("gptq-untrained-static", "WD + GPTQ + output bias, static", "the same with `--activations static`",
           {"rounding": "gptq", "activations": "static", "output_bias": True}, presets=("w8a8",)),
    Method("default", "the default", "`dq-deploy quantize`: of before and after training, and output bias or none, what draws nearest",
           {"rounding": None, "activations": None, "output_bias": None, "judged_samples": None}, "block", presets=PRESETS),
    Method("gptq-auto-bias", "DilateQuant from GPTQ's codes, scales by layer, output bias",
           "a scale for each token where that is better, training from GPTQ's codes, the mean error of the output taken off",
           {"rounding": "gptq", "activations": "auto", "output_bias": True}, "block"),
    Method("gptq-auto", "DilateQuant from GPTQ's codes, scales by layer", "the same without the output bias",
           {"rounding": "gptq", "activations": "auto"}, "block"),
    Method("gptq-auto-untrained", "WD + GPTQ + output bias, scales by layer", "the default with `--iterations 0`",
           {"rounding": "gptq", "activations": "auto", "output_bias": True}, presets=(*INTEGER_PRESETS, *FEW_BITS)),
    Method("matryoshka-untrained", "one checkpoint of 8, 6, 4 and 3 bits",
           "the same with `--matryoshka 8,6,4,3`, sliced to the preset's bits",
           {"rounding": "gptq", "activations": "auto", "output_bias": True, "matryoshka": tuple(WIDTHS.values())}, presets=tuple(WIDTHS)),
    Method("auto", "DilateQuant, scales by layer", "the default with activations of fewer bits than 8, which trains from the nearest codes",
           {"activations": "auto"}, "block", presets=("w6a6", "w4a4")),
    Method("base", "nothing", "one scale a tensor, the default initial range", _STATIC),
    Method("wd", "WD", "base and error-aware dilation", {"activations": "static"}),
    Method("tpq", "TPQ", "base with a scale and zero-point for each timestep", _TEMPORAL),
    Method("wd-tpq", "WD + TPQ", "DilateQuant without training", {}),
    Method("untrained", "WD + TPQ + output bias",
           "`dq-deploy quantize --iterations 0 --rounding nearest`: the output's mean error is taken off too",
           {"output_bias": True}),
    Method("untrained-static", "WD + output bias, static", "`dq-deploy quantize --iterations 0` with `--activations static`",
           {"activations": "static", "output_bias": True}, presets=("w8a8",)),
    Method("wd-bkd", "WD + BKD", "DilateQuant with one scale for all timesteps", {"activations": "static"}, "block"),
    Method("tpq-bkd", "TPQ + BKD", "DilateQuant without dilation", _TEMPORAL, "block"),
    Method("asymmetric", "DilateQuant, the paper's dilation", "dilation by the paper's rule for asymmetric weights",
           {"dilation": "asymmetric"}, "block"),
    Method("symmetric", "DilateQuant, symmetric dilation", "the paper's rule restated for symmetric weights",
           {"dilation": "symmetric"}, "block", presets=("w4a4",)),
    Method("scaled", "DilateQuant, SmoothQuant's factors", "SmoothQuant's factors in the place of the dilation",
           {"dilation": "smoothquant"}, "block"),
    Method("joint", "DilateQuant, joint skips", "one quantizer over both parts of a concatenated skip (docs/decisions/skip-halves.md)",
           {"skip_halves": "joint"}, "block", presets=("w4a4", "w8a8")),
    Method("onnxruntime", "ONNX Runtime quantize_static", "QDQ, weights per channel, activations unsigned, min-max of the trajectories",
           tool="onnxruntime", presets=("w8a8",), rival=True),
    Method("nncf", "NNCF quantize", "post-training quantization of the OpenVINO model with bias correction, on the same trajectories",
           tool="nncf", presets=("w8a8",), rival=True),
    Method("torchao", "torchao int8 dynamic", "linear layers alone: a scale for each token, computed as it runs, and weights per channel",
           tool="torchao", presets=("w8a8",), families=("transformer",), rival=True),
)  # fmt: skip

BY_NAME: dict[str, Method] = {method.name: method for method in METHODS}

COMPONENTS: dict[tuple[bool, bool, bool], str] = {
    (False, False, False): "base",
    (True, False, False): "wd",
    (False, True, False): "tpq",
    (True, True, False): "wd-tpq",
    (False, False, True): "q-diffusion",
    (True, False, True): "wd-bkd",
    (False, True, True): "tpq-bkd",
    (True, True, True): DILATEQUANT,
}
"""(dilation, tables, block distillation) → method: static block reconstruction is Q-Diffusion's, and all three make DilateQuant."""

DILATIONS: tuple[str, ...] = ("tpq-bkd", "asymmetric", "symmetric", "scaled", DILATEQUANT)
"""The table of dilation rules: none, the paper's, its symmetric form, SmoothQuant's factors, error-aware."""


def method(name: str) -> Method:
    """A method by name. Raises UsageError for one that is not there."""
    if name not in BY_NAME:
        raise UsageError(f"unknown method '{name}'", f"methods: {', '.join(BY_NAME)}")
    return BY_NAME[name]


def canonical(config: QuantizeConfig, family: Family) -> dict[str, Any]:
    """A configuration as JSON, without what cannot matter in it: two methods with one canonical form are one cell."""
    values = config.model_dump(mode="json", exclude=NAMES)
    values["initial_range"] = resolve(config.initial_range).value
    values["output_bias"] = True if config.corrects_output else None  # as cells say that were measured before there was one
    defaults = UNJUDGED.model_dump(mode="json")
    if config.activations in (Activations.PER_TIMESTEP, Activations.STATIC):  # likewise: they say it by its former name
        values["temporal"] = config.activations is Activations.PER_TIMESTEP
        values["activations"] = Activations.PER_TIMESTEP.value
    if values["rounding"] == "nearest":  # likewise: what had no such setting is read with its default
        values["rounding"] = defaults["rounding"]
    unused = [] if values["initial_range"] == "percentile" else ["percentile"]
    unused += ["skip_halves"] if family == "transformer" else []
    unused += ["distillation", "train", "patience", "precision", "lr_scale", "lr_weight"] if config.iterations == 0 else []
    unused += [] if config.judges_distillation else ["judged_samples"]
    return {**values, **{name: defaults[name] for name in unused}}


def representative(name: str, preset: str, settings: Settings, *, family: Family = "unet") -> str:
    """The method whose cell stands for ``name`` at a preset: the first one in the list with the same canonical configuration."""
    chosen = method(name)
    if chosen.tool != "dq-deploy" or preset not in chosen.presets:
        return name
    own = canonical(chosen.config(preset, settings, seed=0), family)
    for other in METHODS:
        if other.tool == "dq-deploy" and preset in other.presets and canonical(other.config(preset, settings, seed=0), family) == own:
            return other.name
    return name
