"""Ask every engine about every pattern, record it, and write the pages."""

from __future__ import annotations

import click

from dq_deploy.console import Output

from .catalogue import PATTERNS
from .engines import ENGINES, Behaviour
from .results import PAGE, RESULTS, Recorded, installed, instructions, load, page
from .rules_page import RULES_PAGE, rules_page


@click.command()
@click.option("--page-only", is_flag=True, help="Write the pages again from what is recorded; builds nothing.")
def main(page_only: bool) -> None:
    """Build every pattern with TensorRT-RTX, OpenVINO and ONNX Runtime; writes results.json, RESULTS.md, docs/lint.md."""
    out = Output()
    if not page_only:
        recorded = Recorded(versions=installed(), instructions=instructions(), behaviours=_ask(out))
        RESULTS.write_text(recorded.model_dump_json(indent=1) + "\n")
    text = page(load())
    PAGE.write_text(text)
    RULES_PAGE.write_text(rules_page())
    out.text(text)


def _ask(out: Output) -> dict[str, dict[str, Behaviour]]:
    behaviours = {}
    with out.progress("patterns", len(PATTERNS)) as advance:
        for pattern in PATTERNS.values():
            model = pattern.build()
            behaviours[pattern.name] = {engine: ask(model) for engine, ask in ENGINES.items()}
            advance(1, pattern.name)
    return behaviours


if __name__ == "__main__":
    main()
