"""Every family goes the whole way, or is refused with exactly the words that the catalogue has for it.

The quick ones run always, all of them with ``--families`` (``make families``), and ``--family-rows DIR`` keeps what they gave.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from tests.families.catalogue import FAMILIES
from tests.families.drive import Row, run_family, write_row
from tests.families.family import STAGES, USUAL_SNR_DB, Family

pytestmark = pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="TensorRT-RTX is not installed")


def file_name(name: str) -> str:
    """A family's name as the name of a file."""
    return re.sub(r"[^\w.]+", "-", name).strip("-").lower()


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, id=file_name(name), marks=[] if family.quick else pytest.mark.families) for name, family in FAMILIES.items()],
)
def test_family(family: Family, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    row = run_family(family, tmp_path)
    if folder := request.config.getoption("--family-rows"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_row(row, Path(folder) / f"{file_name(family.name)}.json")
    if family.refused is None:
        check_that_it_went(family, row)
    else:
        assert (row.stage, row.error) == (family.refused.stage, family.refused.error), row.message
        assert family.refused.text in row.message


def check_that_it_went(family: Family, row: Row) -> None:
    assert not row.error, f"{row.stage}: {row.message}"
    assert not row.failures
    assert row.layers > 15
    assert row.int8 >= family.int8 * row.layers, row.not_int8
    assert row.openvino_int8 == row.layers
    assert row.beside_the_sample <= family.products_in_float, row.float_layers
    assert row.sample_share < 0.035  # of networks this small
    assert row.worst_snr_db is not None
    assert row.worst_snr_db > family.snr_db


def test_a_reason_stands_by_whatever_falls_short() -> None:
    for family in FAMILIES.values():
        assert bool(family.why) == (family.products_in_float > 0 or family.int8 < 1 or family.snr_db < USUAL_SNR_DB), family.name
        assert family.refused is None or family.refused.stage in STAGES


def test_the_quick_ones_are_few() -> None:
    quick = [family.name for family in FAMILIES.values() if family.quick]
    assert quick == ["UNet1D", "CogVideoX 2B"]  # the kinds that no other test takes all the way
    assert all(FAMILIES[name].refused is None for name in quick)
