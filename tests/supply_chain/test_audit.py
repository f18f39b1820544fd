"""An audit that learned nothing must not look like one that found nothing."""

from __future__ import annotations

import json
from typing import Any

from tests.supply_chain.audit import CONTROL, UNKNOWN, VULNERABLE, verdict


def package(name: str, version: str, *advisories: str) -> dict[str, Any]:
    return {"name": name, "version": version, "vulns": [{"id": each, "fix_versions": ["9"]} for each in advisories]}


CLEAN, KNOWN = package("click", "8.5.1"), package(*CONTROL, "PYSEC-2018-66")


def judged(*packages: dict[str, Any]) -> tuple[int, str]:
    code, lines = verdict(json.dumps({"dependencies": packages, "fixes": []}), "")
    return code, "\n".join(lines)


def test_clean_only_when_the_control_is_found() -> None:
    assert judged(CLEAN, KNOWN) == (0, "1 pinned packages: no known vulnerability")
    code, text = judged(CLEAN, package(*CONTROL))
    assert code == UNKNOWN
    assert "has none for flask 0.12.2, which is known to be vulnerable" in text
    assert judged(CLEAN)[0] == UNKNOWN


def test_a_vulnerability_is_named_with_its_mended_version() -> None:
    assert judged(package("jinja2", "2.10", "CVE-2019-10906"), KNOWN) == (VULNERABLE, "jinja2 2.10: CVE-2019-10906, fixed in 9")


def test_what_pip_audit_skips_is_not_passed_over() -> None:
    # As it answers, with exit code 0, on a mirror that has packages and no advisories.
    skipped = {"name": "jinja2", "skip_reason": "Dependency not found on PyPI and could not be audited: jinja2 (2.10)"}
    code, text = judged(skipped, CLEAN, KNOWN)
    assert code == UNKNOWN
    assert text == "the database of advisories does not know 1 of 3 packages: jinja2"
    assert judged(skipped, package("click", "1", "X-1"), KNOWN)[0] == VULNERABLE


def test_no_network() -> None:
    code, lines = verdict("", "Traceback\nrequests.exceptions.ConnectionError: no such host\n\n")
    assert code == UNKNOWN
    assert lines[0] == "the database of advisories could not be asked: requests.exceptions.ConnectionError: no such host"
    assert verdict("{}", "")[0] == UNKNOWN
