"""The command line: thin commands over the Python API. Data on stdout, everything else on stderr; exit codes in ``errors.py``."""

from __future__ import annotations

import signal
import sys
import traceback

import click

from .commands import COMMANDS
from .commands.errors import known_error, one_line
from .console import Output, give_up, prepare_streams
from .errors import ResourceError, UsageError
from .versions import DISTRIBUTION, installed_version

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_INTERRUPTED = 130


def main() -> None:
    """Entry point of ``dq-deploy``: runs a command and turns what it raises into a message and an exit code."""
    prepare_streams()
    # A terminated job cleans up as an interrupted one does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(_flushed(run(sys.argv[1:])))


def _flushed(code: int) -> int:
    """The exit code, once all that was printed has gone out: Python itself would end with another where a full disk has not taken it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        give_up(sys.stdout)
        if code == 0:
            Output().error(ResourceError(f"stdout could not be written: {error.strerror}"))
            return ResourceError.exit_code
    return code


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    output = Output()
    try:
        result = cli.main(args=arguments, prog_name="dq-deploy", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "dq-deploy"
        output.error(UsageError(one_line(error.format_message()), f"{command} --help"))
        return UsageError.exit_code
    except (KeyboardInterrupt, click.Abort):
        output.warn("interrupted; nothing half-written is left")
        return _INTERRUPTED
    except Exception as error:  # noqa: BLE001  the one place where everything ends
        known = known_error(error)
        if known is not None:
            output.error(known)
            return known.exit_code
        traceback.print_exc()
        output.warn("this is a bug in dq-deploy: please report it with the lines above")
        return 1


class _InOrder(click.Group):
    """Lists its commands in the order in which they were added."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click gives it
        """Their names."""
        return list(self.commands)


@click.group(cls=_InOrder, context_settings=_CONTEXT)
@click.version_option(installed_version(DISTRIBUTION) or "of a checkout that is not installed")
def cli() -> None:
    """Quantize diffusion models, with activation scales per timestep, and deploy them with ONNX Runtime, OpenVINO and TensorRT.

    \b
    A first round. It takes minutes, fewer with quantize --iterations 0 (what a
    model of your own takes: quantize --dry-run):
      dq-deploy quantize builtin:fashion-mnist-unet -o checkpoint
      dq-deploy export checkpoint -o bundle --target qdq
      dq-deploy check bundle --checkpoint checkpoint
      dq-deploy build-engine bundle -o engine --backend openvino
      dq-deploy sample bundle -o grid.png

    \b
    Exit codes: 0 done, 1 bug, 2 usage, 3 bad input artefact, 4 environment,
    5 out of memory or disk, 6 accuracy gate failed, 7 performance gate failed,
    130 interrupted.
    """  # noqa: D301  click reads the character \b, not the two that spell it


for _command in COMMANDS:
    cli.add_command(_command)


if __name__ == "__main__":
    main()
