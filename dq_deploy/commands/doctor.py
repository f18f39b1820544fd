"""``dq-deploy doctor``: the command, and what it prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..console import Output
from ..errors import EnvironmentProblem
from .options import common

if TYPE_CHECKING:
    from ..doctor import Diagnosis


@click.command(short_help="What is installed, what is wrong, how to fix it.")
@common
def doctor(output: Output) -> None:
    """Say what is installed, what works, what is wrong, and the command that fixes it.

    Every installed engine is imported once, in a process of its own. Exit code 4 when something is wrong; what is merely absent is not.
    """
    from ..doctor import diagnose

    show_diagnosis(diagnose(progress=output.progress), output)


def show_diagnosis(diagnosis: Diagnosis, output: Output) -> None:
    """Every finding, then what fixes what is wrong or absent. Raises EnvironmentProblem when something is wrong."""
    rows = [(f.state, f.name, f.found, f.meaning) for f in diagnosis.findings]
    output.table("what is installed", ("", "what", "found", ""), rows)
    for finding in diagnosis.findings:
        if finding.mend:
            output.text(f"{finding.name}: {finding.mend}")
    output.data({**diagnosis.model_dump(), "passed": bool(diagnosis)})
    if diagnosis.wrong:
        names = ", ".join(f"{f.name} ({f.found})" for f in diagnosis.wrong)
        raise EnvironmentProblem(f"{len(diagnosis.wrong)} wrong: {names}", next((f.mend for f in diagnosis.wrong if f.mend), None))
    output.text("nothing is wrong")
