"""Which families go the whole way in which number format: ``python -m tests.families.formats``.

It runs what ``formats.json`` does not have yet, and writes the second table of docs/families.md from that file.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path

from tests.families.catalogue import FAMILIES
from tests.families.drive import Row, run_family
from tests.families.table import PAGE

RECORDS = Path(__file__).parent / "formats.json"
BEGIN, END = "<!-- formats: begin, written by python -m tests.families.formats -->", "<!-- formats: end -->"
STUDIED = ("FLUX.1", "Stable Diffusion 1.5")
PRESETS = {"w4a8": "8.9", "w4a16": "8.9", "fp8": "8.9", "nvfp4": "12.0"}
"""Preset → the compute capability that it is built for."""


def run_cell(family: str, preset: str, folder: Path) -> Row:
    """Quantize, export for ``qdq``, check in ONNX Runtime, and compile with TensorRT-RTX."""
    return run_family(FAMILIES[family], folder, preset=preset, targets=("qdq",), capability=PRESETS[preset], openvino=False)


def read_records() -> dict[str, dict[str, Row]]:
    """Family → preset → what became of it."""
    stored = json.loads(RECORDS.read_text()) if RECORDS.is_file() else {}
    return {family: {preset: Row(**row) for preset, row in rows.items()} for family, rows in stored.items()}


def table(records: dict[str, dict[str, Row]]) -> str:
    """A row a family, a column a preset; what was not run is said."""
    head = [f"| family | {' | '.join(f'`{preset}`, for {capability}' for preset, capability in PRESETS.items())} |"]
    lines = [f"| {family} | {' | '.join(_cell(records.get(family, {}).get(preset)) for preset in PRESETS)} |" for family in STUDIED]
    return "\n".join([*head, f"|---|{'---:|' * len(PRESETS)}", *lines])


def _cell(row: Row | None) -> str:
    if row is None:
        return "not run"
    if row.error:
        return f"`{row.stage}` refuses"
    if row.failures:
        return "`check` fails"
    planned = f"{row.as_planned} of {row.planned}" if row.planned else f"{row.layers} weights in INT4"
    return f"{planned}, {row.worst_snr_db:.1f} dB"


def write(records: dict[str, dict[str, Row]]) -> None:
    """Put the table between the page's markers."""
    page = PAGE.read_text()
    before, after = page[: page.index(BEGIN) + len(BEGIN)], page[page.index(END) :]
    PAGE.write_text(f"{before}\n\n{table(records)}\n\n{after}")


def main() -> None:
    """Run what is missing."""
    records = read_records()
    for family in STUDIED:
        for preset in PRESETS:
            if preset in records.setdefault(family, {}):
                continue
            with tempfile.TemporaryDirectory() as folder:
                records[family][preset] = run_cell(family, preset, Path(folder))
            stored = {name: {preset: {**asdict(row), "seconds": {}} for preset, row in rows.items()} for name, rows in records.items()}
            RECORDS.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    write(records)


if __name__ == "__main__":
    main()
