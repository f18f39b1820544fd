"""Options that commands share, and the parsing of what flags and the configuration file hold."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from ..console import Output
from ..errors import ArtifactError, UsageError, beside
from ..formats.target import TARGETS, target_name
from ..launched import is_first_process

PATH = click.Path(path_type=Path)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --format and --quiet, and hand the command an ``Output``."""

    @click.option(
        "--format",
        "format_",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="Tables for people, or one JSON object.",
    )
    @click.option("-q", "--quiet", is_flag=True, help="No progress, no notes.")
    @functools.wraps(command)
    def wrapper(*args: Any, format_: Any, quiet: bool, **kwargs: Any) -> Any:
        # Of several processes of one command the first speaks; of the others only errors are heard.
        output = Output(format_, quiet) if is_first_process() else Output(format_, quiet=True, stdout=Console(file=io.StringIO()))
        return command(*args, output=output, **kwargs)

    return wrapper


def _pictures_or_none(_: click.Context, __: click.Parameter, value: tuple[Path, ...]) -> list[Path] | None:
    return list(value) or None


def _picture_option(flag: str, text: str) -> Callable[..., Any]:
    return click.option(flag, multiple=True, type=PATH, metavar="FILE", callback=_pictures_or_none, help=text)


_PICTURES = (
    _picture_option("--image", "Picture that the pipeline changes, repeatable: they are taken in turn.  [default: none]"),
    _picture_option("--mask", "What of the picture is drawn anew, in white; one for each picture, or one for all.  [default: none]"),
    _picture_option("--control-image", "Picture that steers a ControlNet, repeatable: they are taken in turn.  [default: none]"),
    _picture_option("--ip-adapter-image", "Picture for an IP-Adapter, repeatable: they are taken in turn.  [default: none]"),
    click.option(
        "--strength", type=float, metavar="0-1", help="How much of the picture is changed.  [default: as calibrated, or the pipeline's]"
    ),
)


def calibration_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What the calibration is conditioned on (passed as ``calibration``), and how it is sampled (options like any other)."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        given = {name: value for name in _CALIBRATION if (value := kwargs.pop(name)) is not None}
        if "lora_scale" in given and "lora" not in given:
            raise UsageError("--lora-scale is the weight of a LoRA, and none is given", "give --lora FILE too")
        if "ip_adapter_scale" in given and "ip_adapter" not in given:
            raise UsageError("--ip-adapter-scale is of an IP-Adapter, and none is given", "give --ip-adapter FILE too")
        return command(*args, calibration=given, **kwargs)

    for option in reversed((
        click.option(
            "--prompts", type=PATH,
            help="Text file of calibration prompts, one a line (UTF-8).  [default: a built-in's own]",
        ),
        click.option("--negative-prompt", help="Negative prompt.  [default: empty]"),
        click.option("--height", type=click.IntRange(1), metavar="PIXELS", help="Image height in pixels.  [default: the pipeline's]"),
        click.option("--width", type=click.IntRange(1), metavar="PIXELS", help="Image width in pixels.  [default: the pipeline's]"),
        click.option("--frames", type=click.IntRange(1), metavar="N", help="Frames of a video.  [default: the pipeline's]"),
        *_PICTURES,
        click.option("--controlnet", type=PATH, help="Folder of the ControlNet that steers SOURCE.  [default: none]"),
        click.option(
            "--pipeline", type=PATH, help="The pipeline that SOURCE, a ControlNet, steers.  [default: none]"
        ),
        click.option(
            "--ip-adapter",
            type=PATH,
            help="IP-Adapter to load into SOURCE: a file (safetensors), or a folder with one; its image_encoder lies beside it.  "
            "[default: none]",
        ),
        click.option("--ip-adapter-scale", type=float, help="How much the IP-Adapter's picture counts; fixed in the graph.  [default: 1]"),
        click.option("--classes", metavar="LIST", help="Class labels of a class-conditional model, such as 0-9,3.  [default: all]"),
        click.option("--guidance-scale", type=float, help="Classifier-free guidance that you sample with.  [default: the pipeline's]"),
        click.option(
            "--sampler",
            type=click.Choice(["ddim", "pipeline"]),
            help="Scheduler of the calibration: DDIM where the network takes it for its own, or the pipeline's.  [default: ddim]",
        ),
        click.option("--lora", type=PATH, help="LoRA file (safetensors) to merge into the weights."),
        click.option("--lora-scale", type=float, help="Weight of the LoRA.  [default: 1]"),
    )):  # fmt: skip
        wrapper = option(wrapper)
    return wrapper


_CALIBRATION = (
    "prompts", "negative_prompt", "height", "width", "frames", "image", "mask", "control_image", "strength",
    "controlnet", "pipeline", "ip_adapter", "ip_adapter_scale", "ip_adapter_image", "classes", "lora", "lora_scale",
)  # fmt: skip


def asks_for_pictures(command: Callable[..., Any]) -> Callable[..., Any]:
    """What pictures are drawn of."""
    for option in reversed((
        click.option(
            "--prompts", type=PATH,
            help="Text file of prompts to draw in turn, one a line (UTF-8).  [default: a built-in's own]",
        ),
        click.option("--negative-prompt", help="Negative prompt.  [default: empty]"),
        *_PICTURES,
        click.option(
            "--classes", metavar="LIST", help="Class labels to draw in turn, such as 0-9,3.  [default: all]"
        ),
        click.option("--guidance-scale", type=float, help="Classifier-free guidance.  [default: as calibrated]"),
    )):  # fmt: skip
        command = option(command)
    return command


class _BuildOption(click.Option):
    """An option of engine builders, whose help begins with the engines that have it."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from ..engines.descriptors.registry import builders

        record = super().get_help_record(ctx)
        names = [name for name, engine in builders().items() if self.name in engine.building.options]
        return record and (record[0], f"{', '.join(names)}: {record[1]}")


_build_option = functools.partial(click.option, cls=_BuildOption)


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of an engine's build, passed as ``engine_options`` (those that were given) and ``sizes`` (of dynamic dimensions)."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        options = click.get_current_context().command.params
        given = {option.name: kwargs.pop(option.name) for option in options if isinstance(option, _BuildOption)}
        given = {name: value for name, value in given.items() if value is not None and value is not False}  # 0 is a level
        sizes = {name: size_range(value, _flag(name)) for name in _DIMENSIONS if (value := kwargs.pop(name)) is not None}
        return command(*args, engine_options=given, sizes=sizes, **kwargs)

    dimensions = (
        click.option(
            _flag(name),
            metavar="MIN,OPT,MAX",
            help=f"Sizes of a dynamic {_WORDS.get(name, name)}, in the input's own units.  [default: the calibrated ones]",
        )
        for name in _DIMENSIONS
    )
    for option in reversed((
        *dimensions,
        _build_option("--optimization-level", type=int, help="0 (fast build) to 5 (thorough).  [default: 3]"),
        _build_option("--workspace-mb", type=int, metavar="MIB", help="GPU memory that one kernel may use, in MiB.  [default: all]"),
        _build_option("--weight-streaming", is_flag=True, help="weights may stay in host memory."),
        _build_option("--timing-cache", type=PATH, help="file of kernel timings; builds may share it."),
        _build_option(
            "--hardware-compatibility",
            type=click.Choice(["ampere-plus", "same-compute-capability"]),
            help="which other GPUs the engine must run on too.",
        ),
        _build_option("--version-compatible", is_flag=True, help="later releases of the same major version read it too."),
        _build_option(
            "--int8-kernels",
            type=click.Choice(["auto", "always", "never"]),
            help="INT8 kernels unless they saturate on the CPU that loads the engine, always, or never.  [default: auto]",
        ),
    )):  # fmt: skip
        wrapper = option(wrapper)
    return wrapper


_DIMENSIONS = ("height", "width", "picture_tokens", "tokens")
"""As ``quantization.graph.free_sizes`` names them."""


_WORDS = {"tokens": "length of the text", "picture_tokens": "number of a picture's tokens"}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def size_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """One size of every dynamic dimension, passed as ``sizes`` (those that were given)."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        sizes = {name: value for name in _DIMENSIONS if (value := kwargs.pop(name)) is not None}
        return command(*args, sizes=sizes, **kwargs)

    for name in reversed(_DIMENSIONS):
        what = (
            f"Size of a dynamic {_WORDS.get(name, name)}, in the input's own units.  [default: the engine's usual, or the first calibrated]"
        )
        wrapper = click.option(_flag(name), type=click.IntRange(1), metavar="N", help=what)(wrapper)
    return wrapper


def size_range(text: str, option: str) -> tuple[int, int, int]:
    """MIN,OPT,MAX. Raises UsageError."""
    sizes = whole_numbers(text, option)
    if len(sizes) != 3:
        raise UsageError(f"{option} takes MIN,OPT,MAX, not '{text}'")
    return sizes[0], sizes[1], sizes[2]


def allows_pickles(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --allow-pickle to a command that reads a source, and let it read pickled weights where it is given. Inside of ``common``."""

    @click.option(
        "--allow-pickle",
        is_flag=True,
        help="Read pickled weights (.bin) where there are no safetensors: tensors only, no code is run.",
    )
    @functools.wraps(command)
    def wrapper(*args: Any, allow_pickle: bool, output: Output, **kwargs: Any) -> Any:
        if not allow_pickle:
            return command(*args, output=output, **kwargs)
        from ..sources import allow_pickles

        with allow_pickles(output.warn):
            return command(*args, output=output, **kwargs)

    return wrapper


class EngineChoice(click.Choice):  # type: ignore[type-arg]  # it has a parameter from click 8.4 on
    """Names from the table of engines (``registry``: "engines", "builders" or "runtimes"), looked up when they are needed."""

    def __init__(self, table: str, *more: str) -> None:
        self._table, self._more = table, more
        self.case_sensitive = True

    @property
    def choices(self) -> tuple[str, ...]:  # type: ignore[override]
        """The names."""
        from ..engines.descriptors import registry

        return *self._more, *getattr(registry, self._table)()


class _EngineOption(click.Option):
    """--engine, whose names are too many for one line: they stand in its help."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """With the names at its end."""
        record = super().get_help_record(ctx)
        assert isinstance(self.type, click.Choice)
        return record and (record[0], f"{record[1]}  {', '.join(self.type.choices)}.")


def engines_option(text: str) -> Callable[..., Any]:
    """--engine, any of the table, several times, passed as ``engines``."""
    return click.option(
        "--engine", "engines", cls=_EngineOption, type=EngineChoice("engines"), metavar="ENGINE", multiple=True, help=text
    )  # fmt: skip


class TargetChoice(click.Choice):  # type: ignore[type-arg]  # it has a parameter from click 8.4 on
    """Targets by their names of today; those of before are taken too."""

    def __init__(self) -> None:
        super().__init__(TARGETS)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name of today."""
        return super().convert(target_name(value), param, ctx)


force_option = click.option("--force", is_flag=True, help="Overwrite an existing dq-deploy output.")


def output_folder(what: str) -> Callable[..., Any]:
    """-o/--output, the folder that a command makes."""
    return click.option("-o", "--output", "destination", type=PATH, required=True, help=f"Folder for the {what}; must not exist.")


def whole_numbers(text: str, option: str) -> list[int]:
    """Numbers with commas between them. Raises UsageError."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"{option} takes whole numbers with commas between them, not '{text}'") from None


def read_config(path: Path | None) -> dict[str, Any]:
    """Options from a JSON file, by name. Raises UsageError naming every unknown one."""
    from ..artifacts.reading.plain import JSON_LIMIT, parse_json, read_bytes

    if path is None:
        return {}
    try:
        content = parse_json(read_bytes(path, limit=JSON_LIMIT))
    except FileNotFoundError:
        raise UsageError(f"no such path: {path}", beside(path)) from None
    except (ArtifactError, ValueError, OSError) as error:
        raise UsageError(f"{path} is not a JSON file: {error}") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} must hold one JSON object of options")
    from ..quantization.config.filling import under_current_names

    try:
        content = under_current_names(content)
    except ValueError as error:
        raise UsageError(f"{path}: {error}", "name one of them") from None
    known = _config_keys()
    problems = [f"unknown option '{key}'" for key in content if key not in known]
    problems += [f"'{key}' must be {what}" for key, kind, what in _CONFIG_KINDS if not isinstance(content.get(key, kind()), kind)]
    if problems:
        raise UsageError(f"{path}: {'; '.join(problems)}", f"the options are {', '.join(known)}")
    return content


# What the merge with flags relies on; the values are judged by QuantizeConfig.
_CONFIG_KINDS: tuple[tuple[str, type, str], ...] = (("keep", dict, "an object of pattern and bits"), ("preset", str, "a name"))


def _config_keys() -> list[str]:
    from ..quantization import QuantizeConfig

    return ["preset", *QuantizeConfig.model_fields]


def parse_keep(text: str) -> tuple[str, int | str]:
    """PATTERN=BITS or PATTERN=float. Raises UsageError."""
    pattern, separator, value = text.partition("=")
    if not separator or not pattern or not (value == "float" or value.isdecimal()):
        raise UsageError(f"--keep takes PATTERN=BITS or PATTERN=float, not '{text}'")
    return pattern, value if value == "float" else int(value)
