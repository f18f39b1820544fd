"""From any exception to an error that a user can mend, where it is one."""

from __future__ import annotations

import errno
from collections.abc import Iterator

from ..errors import DqDeployError, EnvironmentProblem, ResourceError, UsageError

# Packages whose distribution has another name than their module.
_DISTRIBUTIONS = {"PIL": "pillow", "onnx_ir": "onnx-ir", "tensorrt_rtx": "tensorrt-rtx"}


def known_error(error: BaseException) -> DqDeployError | None:
    """The error, or what caused it, as one that a user can mend; None for a bug of ours."""
    return next(filter(None, map(_known, _chain(error))), None)


def one_line(message: str) -> str:
    """The message without its line breaks."""
    return " ".join(message.split())


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it: lazy importers wrap a missing package in errors of their own."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__


def _known(error: BaseException) -> DqDeployError | None:
    """The error as one that a user can mend, or None for a bug of ours."""
    if isinstance(error, DqDeployError):
        return error
    if isinstance(error, ImportError) and not (error.name or "dq_deploy").startswith("dq_deploy"):
        package = str(error.name).split(".")[0]
        if isinstance(error, ModuleNotFoundError):
            return EnvironmentProblem(f"the package '{package}' is not installed", f"pip install {_DISTRIBUTIONS.get(package, package)}")
        return EnvironmentProblem(
            f"the package '{package}' cannot be loaded: {one_line(str(error))}", "reinstall it, or try another version"
        )
    if isinstance(error, MemoryError) or "not enough memory" in str(error) or "out of memory" in str(error).lower():
        return ResourceError(f"out of memory: {one_line(str(error))}", "a smaller --batch-size needs less")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"no space left on the disk: {error.filename or error}")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return ResourceError(f"a file is larger than this process or disk allows: {error.filename or error}", "see `ulimit -f`")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return UsageError(f"a read-only disk: {error.filename or error}")
    if isinstance(error, PermissionError):
        return UsageError(f"no permission: {error.filename or error}")
    return None
