"""Pictures that a pipeline is conditioned on beside its prompts: those to change, their masks, and those that steer a ControlNet."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UsageError

Given = str | Path | Image.Image
"""A picture as it is given: a file, or PIL's object."""

_FLAGS = {"image": "--image", "mask": "--mask", "control_image": "--control-image", "ip_adapter_image": "--ip-adapter-image"}
_SHOWN = {"image": "picture", "mask": "mask", "control_image": "control picture", "ip_adapter_image": "picture for an IP-Adapter"}
_ENCODED = "ip_adapter_image"  # it is cut to the size of its encoder, and may have any
_SAME_PROPORTIONS = 0.02  # an edge is a whole number of pixels, and often of eight or sixteen of them


@dataclass(frozen=True)
class Pictures:
    """Pictures in RGB, masks in grey (white is drawn anew), and how much of the schedule is run from them, in (0, 1].

    Each kind is dealt to the runs in turn, as prompts are: as many prompts as pictures are pairs.
    """

    image: tuple[Image.Image, ...] = ()
    mask: tuple[Image.Image, ...] = ()
    control_image: tuple[Image.Image, ...] = ()
    ip_adapter_image: tuple[Image.Image, ...] = ()
    strength: float | None = None

    @classmethod
    def read(cls, image: Sequence[Given] | Given = (), mask: Sequence[Given] | Given = (), control_image: Sequence[Given] | Given = (),
             ip_adapter_image: Sequence[Given] | Given = (), strength: float | None = None) -> Pictures:  # fmt: skip
        """Read files and objects of PIL.

        Raises UsageError, naming them all, for what is missing or no picture; for masks without pictures, of another size or number, or
        that leave nothing to draw; for a strength that is not in (0, 1].
        """
        if strength is not None and not 0 < strength <= 1:
            raise UsageError(
                f"the strength is {strength}, and must be above 0 and at most 1", "1 redraws all of the picture, 0.3 a little of it"
            )
        found = cls(_opened(image, "image", "RGB"), _opened(mask, "mask", "L"), _opened(control_image, "control_image", "RGB"),
                    _opened(ip_adapter_image, _ENCODED, "RGB"), strength)  # fmt: skip
        if strength is not None and not found.image:
            raise UsageError("a strength is given, and no picture to change", "--image FILE is the picture; or leave --strength out")
        _check_masks(found)
        return found

    def __bool__(self) -> bool:
        return bool(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Kinds that are given."""
        return tuple(name for name in _FLAGS if getattr(self, name))

    @property
    def drawn(self) -> tuple[str, ...]:
        """Those of them that have the size that is drawn."""
        return tuple(name for name in self.names if name != _ENCODED)

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that all have; None where they differ, or there are none."""
        sizes = {picture.size for name in self.drawn for picture in getattr(self, name)}
        width, height = sizes.pop() if len(sizes) == 1 else (0, 0)
        return (height, width) if height else None

    def resized(self, height: int, width: int) -> Pictures:
        """All of this size in pixels that are ``drawn``. Masks keep their two values."""

        def scaled(pictures: tuple[Image.Image, ...], how: Image.Resampling) -> tuple[Image.Image, ...]:
            return tuple(p if p.size == (width, height) else p.resize((width, height), how) for p in pictures)

        return replace(
            self, image=scaled(self.image, Image.Resampling.LANCZOS), mask=scaled(self.mask, Image.Resampling.NEAREST),
            control_image=scaled(self.control_image, Image.Resampling.LANCZOS),
        )  # fmt: skip

    def stretched(self, sizes: Sequence[tuple[int, int]]) -> str:
        """Which pictures lose their proportions at these heights and widths, in words; empty where none does."""
        own = sorted({picture.size for name in self.drawn for picture in getattr(self, name)})
        apart = [
            f"{width}×{height} to {to_width}×{to_height}"
            for width, height in own
            for to_height, to_width in sizes
            if abs(width * to_height / (height * to_width) - 1) > _SAME_PROPORTIONS
        ]
        return ", ".join(apart)

    def chosen(self, pick: Callable[[int], int]) -> dict[str, int]:
        """The number of one of each kind, which ``pick`` gives for how many there are; a picture keeps its mask."""
        found = {name: pick(len(getattr(self, name))) for name in self.names}
        return found | ({"mask": found["image"] % len(self.mask)} if self.mask else {})

    def arguments(self, parameters: Mapping[str, str], numbers: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        """Arguments of a pipeline's call for runs that have the pictures of these ``numbers``, by kind; ``parameters`` name the kinds' own.

        One run's is a picture, and several runs' a list: some pipelines take no lists. An IP-Adapter's is one for all runs: its
        pipelines take a list for pictures that are mixed.
        """
        found: dict[str, Any] = {}
        for name, parameter in parameters.items():
            of_kind = getattr(self, name)
            chosen = [of_kind[number[name]] for number in numbers]
            shared = name == _ENCODED and len(of_kind) == 1
            found[parameter] = chosen[0] if shared or len(chosen) == 1 else chosen
        return found | ({} if self.strength is None else {"strength": self.strength})

    def record(self) -> dict[str, Any]:
        """What a manifest says: how many there were, and not which."""
        counts = {name: len(getattr(self, name)) for name in self.names}
        return counts | ({} if self.strength is None else {"strength": self.strength})

    def sha256(self) -> str:
        """Of all their pixels and sizes."""
        digest = hashlib.sha256()
        for name in self.names:
            for picture in getattr(self, name):
                digest.update(f"{name} {picture.size}\n".encode())
                digest.update(picture.tobytes())
        return digest.hexdigest()


def flags(names: Sequence[str]) -> str:
    """Options of the command line for these kinds."""
    return " and ".join(f"{_FLAGS[name]} FILE" for name in names)


def words(names: Sequence[str]) -> str:
    """These kinds in words."""
    return " and ".join(f"a {_SHOWN[name]}" for name in names)


def parameters_of(pipeline_class: Any, names: Sequence[str]) -> dict[str, str] | None:
    """What a pipeline's call names the kinds ``names``; None where it does not take all of them.

    diffusers' ControlNet pipelines of text alone take the control picture as ``image``.
    """
    taken = inspect.signature(pipeline_class.__call__).parameters
    steered = _steered(pipeline_class)
    found: dict[str, str | None] = {
        "image": "image" if "image" in taken and not (steered and "control_image" not in taken) else None,
        "mask": "mask_image" if "mask_image" in taken else None,
        "control_image": "control_image" if "control_image" in taken else "image" if steered and "image" in taken else None,
        _ENCODED: _ENCODED if _ENCODED in taken else None,
    }
    chosen = {name: found[name] for name in names}
    return {name: parameter for name, parameter in chosen.items() if parameter} if all(chosen.values()) else None


def needed_by(pipeline_class: Any) -> tuple[str, ...]:
    """Kinds that a pipeline of this class cannot do without. Many have None for their default, and a name that tells."""
    name, taken = pipeline_class.__name__, inspect.signature(pipeline_class.__call__).parameters
    parts = inspect.signature(pipeline_class.__init__).parameters
    steered = _steered(pipeline_class)
    alone = steered and "control_image" not in taken  # its image is the control picture
    needs = "image" in taken and (taken["image"].default is inspect.Parameter.empty or any(word in name for word in _FROM_IMAGE))
    found = {
        "image": needs and not alone,
        "mask": "mask_image" in taken,
        "control_image": steered and ("controlnet" in parts or "adapter" in parts),
    }
    return tuple(kind for kind, needed in found.items() if needed)


_FROM_IMAGE = ("Img2Img", "Inpaint", "Pix2Pix", "ImageToVideo", "Image2Video", "Fill", "Edit")
_STEERED = ("ControlNet", "Adapter")


def _steered(pipeline_class: Any) -> bool:
    return any(word in pipeline_class.__name__ for word in _STEERED)


@dataclass(frozen=True, kw_only=True)
class GivenPictures:
    """What a pipeline is to begin with, as it is given: files or images of PIL, and the strength of the change."""

    image: Any = None
    mask: Any = None
    control_image: Any = None
    ip_adapter_image: Any = None
    strength: float | None = None

    @functools.cached_property
    def pictures(self) -> Pictures:
        """What was given, read once. Raises UsageError as ``Pictures.read`` does."""
        return Pictures.read(self.image or (), self.mask or (), self.control_image or (), self.ip_adapter_image or (), self.strength)


def _opened(given: Sequence[Given] | Given, name: str, mode: str) -> tuple[Image.Image, ...]:
    found, problems = [], []
    for thing in _each([given] if isinstance(given, str | Path | Image.Image) else given):
        try:
            found.append(_picture(thing, mode))
        except UsageError as error:
            problems.append(error.message)
    if problems:
        raise UsageError("; ".join(problems), f"{_FLAGS[name]} takes files of pictures (PNG, JPEG, WebP), each on its own")
    return tuple(found)


def _each(given: Sequence[Given]) -> Iterator[Given]:
    """Of a folder its files, by name."""
    for thing in given:
        folder = Path(thing) if isinstance(thing, str | Path) else None
        if folder and folder.is_dir():
            files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
            if not files:
                raise UsageError(f"no pictures in {folder}")
            yield from files
        else:
            yield thing


def _picture(thing: Given, mode: str) -> Image.Image:
    if isinstance(thing, Image.Image):
        return _in_mode(thing, mode)
    if not isinstance(thing, str | Path):
        raise UsageError(f"a picture is a file or an image of PIL, not {thing!r}")
    try:
        with Image.open(thing) as opened:
            return _in_mode(ImageOps.exif_transpose(opened), mode)
    except FileNotFoundError:
        raise UsageError(f"no such picture: {thing}") from None
    except Image.DecompressionBombError as error:
        raise UsageError(f"{thing} is too large a picture: {error}") from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        reason = "not a picture that PIL knows" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UsageError(f"cannot read {thing}: {reason}") from None


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """8 bits a value. Of 16 bits, as depth maps have them, PIL cuts off what is above 255."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) / 257).clip(0, 255).astype(np.uint8))
    return picture.convert(mode)


def _check_masks(found: Pictures) -> None:
    if not found.mask:
        return
    if not found.image:
        raise UsageError("a mask is given, and no picture that it belongs to", "--image FILE is the picture")
    if len(found.mask) not in (1, len(found.image)):
        raise UsageError(
            f"{len(found.mask)} masks are given for {len(found.image)} pictures", "give one for each, in the same order, or one for all"
        )
    for number, mask in enumerate(found.mask):
        if mask.getextrema()[1] == 0:
            raise UsageError(f"mask {number + 1} is black everywhere, which leaves nothing to draw", "white is what is drawn anew")
    for number, picture in enumerate(found.image):
        mask = found.mask[number % len(found.mask)]
        if mask.size != picture.size:
            shown = (f"{width}×{height}" for width, height in (mask.size, picture.size))
            raise UsageError(f"a mask is {next(shown)} pixels, and its picture {next(shown)}", "a mask has its picture's size")
