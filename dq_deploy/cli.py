"""The command line: thin commands over the Python API. Data on stdout, everything else on stderr; exit codes in ``errors.py``."""

from __future__ import annotations

import os
import signal
import sys
import traceback

import click

from .commands import COMMANDS
from .commands.errors import known_error, one_line
from .console import Output
from .errors import UsageError
from .versions import DISTRIBUTION, installed_version

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def main() -> None:
    """Entry point of ``dq-deploy``: runs a command and turns what it raises into a message and an exit code."""
    # A job that is told to stop cleans up as one that is interrupted does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(run(sys.argv[1:]))


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
    except BrokenPipeError:
        # Whoever read the output has what was wanted. Python would complain once more when it flushes the closed pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except Exception as error:  # noqa: BLE001  the one place where everything ends
        known = known_error(error)
        if known is not None:
            output.error(known)
            return known.exit_code
        traceback.print_exc()
        output.warn("this is a bug in dq-deploy: please report it with the lines above")
        return 1


@click.group(context_settings=_CONTEXT)
@click.version_option(installed_version(DISTRIBUTION) or "of a checkout that is not installed")
def cli() -> None:
    """Quantize diffusion models with per-timestep scales and deploy them as integer engines.

    \b
    A first round:
      dq-deploy quantize builtin:fashion-mnist-unet -o checkpoint
      dq-deploy export checkpoint -o bundle --target tensorrt
      dq-deploy check bundle --checkpoint checkpoint
      dq-deploy build-engine bundle -o engine --backend tensorrt-rtx --compute-capability 8.9
      dq-deploy sample bundle -o grid.png

    \b
    Exit codes: 0 done, 1 bug, 2 usage, 3 bad input artefact, 4 environment, 5 out of memory or disk,
    6 accuracy gate failed, 7 performance gate failed, 130 interrupted.
    """  # noqa: D301  click reads the character \b, not the two that spell it


for _command in COMMANDS:
    cli.add_command(_command)


if __name__ == "__main__":
    main()
