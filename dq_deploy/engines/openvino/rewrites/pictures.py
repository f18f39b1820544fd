"""What lists the pixels of a picture as [N, C, H · W] and works on each of them alone, or on whole channels, on the picture itself.

Attention of OpenAI's UNets does so around its 1 × 1 convolutions: normalization, quantizers and the addition of what comes in too. INT8
convolutions have their channels last. OpenVINO takes the list for another order, copies it, and then computes the residual blocks that
follow in that order, which is slow.
"""

from __future__ import annotations

from math import prod
from typing import Any

from .graph import SHAPING, hand_over, inputs, kind, readers, reshaped, shape_of

_ALONE = ("Add", "Subtract", "Multiply", "Divide", "Round", "FakeQuantize", "Clamp", "Convert", "Sigmoid", "Swish", "Gelu")
_FIRST_ONLY = ("Convolution", "GroupNormalization")  # whose other inputs have no pixels


def pictures_stay_pictures(model: Any) -> None:
    """See the module. First what reads a list of a picture's pixels, then what makes such a list that is added to a picture.

    Tokens whose heads lie side by side have the sizes of such a list too. A list is a picture's where a convolution or a normalization of
    channels works on it.
    """
    lists = _Lists()
    for node in model.get_ordered_ops():
        pictures = [picture for value in inputs(node) if lists.knows(value) and (picture := _picture(value)) is not None]
        if pictures and node.get_type_name() == "Reshape" and shape_of(node.output(0)) == shape_of(pictures[0]):
            hand_over(node.output(0), pictures[0])
        elif pictures:
            lists.compute_on_pictures(node, shape_of(pictures[0])[2:])
    while lists.into_pictures:
        lists.take_up(lists.into_pictures.pop())


class _Lists:
    """The lists of pixels that were found, and the reshapes of others to pictures that were put in."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self.into_pictures: list[Any] = []

    def knows(self, value: Any) -> bool:
        """Whether a value lists the pixels of a picture."""
        name = value.get_node().get_name()
        if name not in self._known:
            self._known[name] = _picture(value) is not None and _reaches_a_layer(value)
        return self._known[name]

    def compute_on_pictures(self, node: Any, size: list[int]) -> bool:
        """Let a node work on pictures of this size, and list the pixels after it; False, and nothing changed, if it is no such node."""
        shape = shape_of(node.output(0)) if _works_alone(node, prod(size)) else []
        operands = inputs(node)[:1] if node.get_type_name() in _FIRST_ONLY else inputs(node)
        changed: list[Any] = [_as_picture(value, len(shape), size) for value in operands] if shape else [None]
        if any(value is None for value in changed):
            return False
        for index, value in enumerate(changed):
            node.input(index).replace_source_output(value)
        self.into_pictures += [value.get_node() for value in changed if kind(value) == "Reshape" and _is_picture(shape_of(value))]
        targets = list(node.output(0).get_target_inputs())
        node.validate_and_infer_types()
        listed = reshaped(node.output(0), shape)
        self._known[listed.get_node().get_name()] = True
        for target in targets:
            target.replace_source_output(listed)
        return True

    def take_up(self, reshape: Any) -> None:
        """A list that becomes a picture: what makes the list makes the picture, if nothing else reads the list."""
        size, value = shape_of(reshape.output(0))[2:], reshape.input_value(0)
        while kind(value) in SHAPING and _lists_pixels(shape_of(value)) and len(readers(value)) == 1:
            value = value.get_node().input_value(0)
        alike = shape_of(value)[:2] == shape_of(reshape.output(0))[:2] and len(readers(value)) == 1
        if alike and self.compute_on_pictures(value.get_node(), size):
            hand_over(reshape.output(0), value.get_node().output(0))


def _reaches_a_layer(value: Any) -> bool:
    """Whether a convolution or a normalization of channels reads a list, after what works on each pixel alone."""
    waiting, seen = [value], set()
    while waiting:
        for node in readers(waiting.pop()):
            if node.get_type_name() in _FIRST_ONLY:
                return True
            if node.get_type_name() in (*_ALONE, *SHAPING) and node.get_name() not in seen and _lists_pixels(shape_of(node.output(0))):
                seen.add(node.get_name())
                waiting.append(node.output(0))
    return False


def _picture(flat: Any) -> Any:
    """The picture [N, C, H, W] whose pixels a value lists; None if it lists none."""
    if kind(flat) not in SHAPING or not _lists_pixels(shape_of(flat)):
        return None
    value = flat
    while kind(value) in SHAPING and shape_of(value)[:2] == shape_of(flat)[:2]:
        value = value.get_node().input_value(0)
        if _is_picture(shape_of(value)) and shape_of(value)[:2] == shape_of(flat)[:2]:
            return value
    return None


def _lists_pixels(shape: list[int]) -> bool:
    return len(shape) in (3, 4) and prod(shape[2:]) == shape[2] > 1


def _is_picture(shape: list[int]) -> bool:
    return len(shape) == 4 and min(shape[2:]) > 1


def _works_alone(node: Any, pixels: int) -> bool:
    """Whether a node computes each of so many pixels alone, or groups of whole channels, of a list that it writes."""
    shape = shape_of(node.output(0)) if node.get_output_size() == 1 else []
    if not _lists_pixels(shape) or shape[2] != pixels:
        return False
    if node.get_type_name() == "Convolution":
        options = node.get_attributes()
        plain = set(options["strides"]) == {1} and not any(options["pads_begin"]) and not any(options["pads_end"])
        return plain and len(shape) == 4 and set(shape_of(node.input_value(1))[2:]) == {1} and shape_of(node.input_value(0))[2] == pixels
    return node.get_type_name() in (*_ALONE, *_FIRST_ONLY)


def _as_picture(value: Any, rank: int, size: list[int]) -> Any:
    """An operand of a node on lists of this rank, for one on pictures; None if it does not fit."""
    shape = shape_of(value)
    if not shape or prod(shape) == 1:
        return value
    if len(shape) > rank:
        return None
    whole = [1] * (rank - len(shape)) + shape
    if whole[2] not in (1, prod(size)) or whole[3:] not in ([], [1]):
        return None
    if (picture := _picture(value)) is not None:
        return picture
    return reshaped(value, [*whole[:2], *(size if whole[2] > 1 else [1, 1])])
