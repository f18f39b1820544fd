"""``python -m dq_deploy``: the command line, for launchers that take a module."""

from .cli import main

main()
