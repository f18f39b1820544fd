"""Options of a build. A backend takes those that it has; any other is refused, never ignored."""

from __future__ import annotations

from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from ..errors import UsageError
from .build_request import Backend

Int8Kernels = Literal["auto", "always", "never"]


class BuildOptions(BaseModel):
    """What is None or False was not asked for, and is left to the builder.

    ``int8_kernels``: whether OpenVINO computes quantized layers with INT8 kernels. "auto" takes them unless they saturate on the CPU that
    loads the engine (``OpenVinoRunner``), "always" even then, "never" computes in float.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    int8_kernels: Int8Kernels | None = None

    @classmethod
    def build(cls, backend: Backend, **given: Any) -> BuildOptions:
        """The options, when the backend has all that are given. Raises UsageError naming every one that it has not, and bad values."""
        try:
            options = cls(**given)
        except ValidationError as error:
            problems = [f"{'.'.join(map(str, e['loc']))} is {e['input']!r}: {e['msg']}" for e in error.errors()]
            raise UsageError("; ".join(problems), "see: dq-deploy build-engine --help") from None
        if refused := [name for name in options.asked() if backend not in _BACKENDS[name]]:
            reasons = [f"{flag(name)} is for {' and '.join(_BACKENDS[name])}" for name in refused]
            raise UsageError(f"backend {backend} has no {', '.join(map(flag, refused))}", "; ".join(reasons))
        return options

    def asked(self) -> dict[str, Any]:
        """What was asked for, by name."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value not in (None, False)}

    @property
    def integer(self) -> bool | None:
        """``int8_kernels`` as OpenVinoRunner has it."""
        return {"always": True, "never": False}.get(self.int8_kernels or "auto")


_BACKENDS: dict[str, tuple[Backend, ...]] = {"int8_kernels": ("openvino",)}
INT8_KERNELS = get_args(Int8Kernels)


def flag(name: str) -> str:
    """An option as the command line has it."""
    return "--" + name.replace("_", "-")
