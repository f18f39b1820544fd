"""Ask every engine about every pattern, record it, and write the pages."""

from __future__ import annotations

import click

from dq_deploy.console import Output

from .catalogue import PATTERNS
from .engines import ENGINES, Behaviour
from .results import PAGE, RESULTS, Recorded, installed, instructions, load, page
from .rules_page import RULES_PAGE, rules_page


@click.command()
@click.option("--only", multiple=True, type=click.Choice(list(PATTERNS)), help="Ask about these, and keep what is recorded of the others.")
@click.option("--page-only", is_flag=True, help="Write the pages again from what is recorded; builds nothing.")
def main(only: tuple[str, ...], page_only: bool) -> None:
    """Build every pattern with TensorRT-RTX, OpenVINO and ONNX Runtime; writes results.json, RESULTS.md, docs/lint.md."""
    out = Output()
    if not page_only:
        before = load().behaviours if only else {}
        found = before | _ask(out, only or tuple(PATTERNS))
        found = {name: found[name] for name in PATTERNS if name in found}
        recorded = Recorded(versions=installed(), instructions=instructions(), behaviours=found)
        RESULTS.write_text(recorded.model_dump_json(indent=1) + "\n")
    text = page(load())
    PAGE.write_text(text)
    RULES_PAGE.write_text(rules_page())
    out.text(text)


def _ask(out: Output, names: tuple[str, ...]) -> dict[str, dict[str, Behaviour]]:
    behaviours = {}
    with out.progress("patterns", len(names)) as advance:
        for pattern in map(PATTERNS.__getitem__, names):
            model = pattern.build()
            behaviours[pattern.name] = {engine: ask(model, pattern.capability) for engine, ask in ENGINES.items()}
            advance(1, pattern.name)
    return behaviours


if __name__ == "__main__":
    main()
