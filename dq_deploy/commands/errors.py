"""From any exception to an error that a user can fix, where it is one."""

from __future__ import annotations

import errno

from ..errors import ArtifactError, DqDeployError, EnvironmentProblem, ResourceError, UsageError, causes, out_of_memory

# What a path given by the user can end in, whichever file is opened.
_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENXIO)
_LONGEST_PATH = 200  # that an error repeats
# Packages whose distribution has another name than their module.
_DISTRIBUTIONS = {"PIL": "pillow", "onnx_ir": "onnx-ir"}


def known_error(error: BaseException) -> DqDeployError | None:
    """The error, or what caused it, as one that a user can fix; None for a bug of ours."""
    return out_of_memory(error) or next(filter(None, map(_known, causes(error))), None)


def one_line(message: str) -> str:
    """The message without its line breaks."""
    return " ".join(message.split())


def _known(error: BaseException) -> DqDeployError | None:
    """The error as one that a user can fix, or None for a bug of ours."""
    if isinstance(error, DqDeployError):
        return error
    if isinstance(error, ImportError) and not (error.name or "dq_deploy").startswith("dq_deploy"):
        package = str(error.name).split(".")[0]
        if isinstance(error, ModuleNotFoundError):
            return EnvironmentProblem(f"the package '{package}' is not installed", _install(package))
        return EnvironmentProblem(
            f"the package '{package}' cannot be loaded: {one_line(str(error))}", "reinstall it, or try another version"
        )
    if type(error).__module__.startswith("onnxruntime."):  # for every operator and type that it has no kernel for, among others
        return ArtifactError(f"ONNX Runtime does not run the graph: {one_line(str(error))}", "it names the node, operator and type")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"no space left on the disk: {error.filename or error}")
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return ResourceError(f"a file is larger than this process or disk allows: {error.filename or error}", "see `ulimit -f`")
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return UsageError(f"a read-only disk: {error.filename or error}")
    if isinstance(error, PermissionError):
        return UsageError(f"no permission: {error.filename or error}")
    return _of_a_path(error)


def _install(module: str) -> str:
    """The command that installs a module: an engine's own where it is one."""
    from ..engines.descriptors.registry import engines

    own = (engine.install for engine in engines().values() if module == engine.modules[0])
    return next(own, f"pip install {_DISTRIBUTIONS.get(module, module)}")


def _of_a_path(error: BaseException) -> DqDeployError | None:
    """As ``_known``, for what a path that the user gave can end in, whichever file is opened."""
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return ResourceError(f"too many open files: {error.filename or error}", "see `ulimit -n`")
    if isinstance(error, OSError) and error.errno in _OF_PATHS:
        of = f": {str(error.filename)[:_LONGEST_PATH]}" if error.filename else ""
        return UsageError(f"{error.strerror}{of}", "give another path")
    if isinstance(error, UnicodeEncodeError):
        shown = ascii(error.object[error.start : error.end])
        return EnvironmentProblem(f"the encoding {error.encoding} of this system cannot write {shown}", "set PYTHONUTF8=1")
    if isinstance(error, ValueError) and str(error) == "embedded null byte":
        return UsageError("a path holds a NUL character, which none can", "give another path")
    return None
