"""Whether this process is one of several that a launcher (accelerate, torchrun, mpirun) has started."""

from __future__ import annotations

import os

# As accelerate reads them: torchrun's and accelerate's own, Intel MPI's, Open MPI's, MVAPICH's.
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def launched_processes() -> int:
    """How many processes were started together; 1 without a launcher."""
    return max(_number(_SIZES, 1), 1)


def is_first_process() -> bool:
    """Whether this process is the one that writes and speaks."""
    return launched_processes() == 1 or _number(_RANKS, 0) == 0


def _number(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if os.environ.get(name, "").isdecimal()), default)
