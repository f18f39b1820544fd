"""What the hub's client raises, as errors that say whether it was the name, the network or this machine's disk."""

from __future__ import annotations

import errno
from pathlib import Path

from ..errors import DqDeployError, EnvironmentProblem, UsageError

_CLIENTS = ("httpx", "httpx2", "requests", "urllib3")  # which one depends on the version of huggingface_hub
_FULL = (errno.ENOSPC, errno.EDQUOT)
_TOO_MANY = 429
_NETWORK = "check the network (and HF_HUB_OFFLINE, if that is set); without one only what is in the hub's cache already can be used"


def from_hub(error: Exception) -> bool:
    """Whether an exception is one of the hub's client: a refusal, no network, a cache that cannot be used."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError

    if isinstance(error, OSError) and error.errno in _FULL:
        return False  # a full disk is said to be one
    return isinstance(error, HfHubHTTPError | HFValidationError | LocalTokenNotFoundError | OSError) or _of_client(error)


def unreachable(error: Exception) -> bool:
    """Whether it says that there is no network, or that the hub is in trouble itself."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", None)
        return status is None or status >= 500 or status == _TOO_MANY
    return isinstance(error, LocalEntryNotFoundError | ConnectionError | TimeoutError) or _of_client(error)


def download_error(error: Exception, hub_id: str, what: str) -> DqDeployError:
    """Why ``hub_id``, which was not a path either, could not be downloaded; ``what`` it should be: a model, a repository."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    reason = first_line(error)
    if unreachable(error) and not Path(hub_id).parent.is_dir():
        message = f"no such path: {hub_id}; as a {what} of the hub it is not in the cache on this machine, and the hub cannot be reached"
        return EnvironmentProblem(f"{message}: {reason}", f"check the spelling; {_NETWORK}")
    if isinstance(error, HfHubHTTPError | HFValidationError) or unreachable(error):
        return UsageError(
            f"no such path: {hub_id}; nor can it be had from the hub, or from the hub's cache on this machine: {reason}",
            f"check the spelling; a private {what} needs `hf auth login`, and without a network only one that is in the cache works",
        )
    return EnvironmentProblem(f"the hub's cache on this machine cannot be used: {reason}", "set HF_HOME to a folder that can be written")


def push_error(error: Exception, repo_id: str) -> EnvironmentProblem:
    """Why nothing was pushed."""
    hint = "log in with a token that may write: hf auth login; see what would be uploaded: --dry-run"
    return EnvironmentProblem(f"{repo_id} was not pushed: {first_line(error)}", _NETWORK if unreachable(error) else hint)


def first_line(error: Exception) -> str:
    """What a client says, without the advice after it."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _of_client(error: Exception) -> bool:
    return any(kind.__module__.partition(".")[0] in _CLIENTS for kind in type(error).__mro__)
