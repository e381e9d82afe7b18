"""`make audit`: what is known of vulnerabilities is told, and what is not known is never good news."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts import audit


def printed(*dependencies: Mapping[str, object]) -> str:
    """Return what pip-audit prints."""
    return json.dumps({"dependencies": dependencies, "fixes": []})


GOOD = {"name": "good", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": []}]}
LEFT_OUT = {"name": "left", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("said", "complaint", "code", "told"),
    [
        (printed(GOOD), "", audit.NONE, "no known vulnerability in 1 packages"),
        (printed(GOOD, BAD), "Found 1 known vulnerability", audit.SOME, "bad 2: PYSEC-1, mended in 3"),
        (printed(BAD, LEFT_OUT), "", audit.UNKNOWN, "NOT AUDITED: left: not found"),
        (printed(), "", audit.UNKNOWN, "NOT AUDITED"),
        ("", "Traceback\nConnectionError: no route\n", audit.UNKNOWN, "NOT AUDITED: ConnectionError: no route."),
        ("", "", audit.UNKNOWN, "NOT AUDITED: no answer."),
        ("[]", "", audit.UNKNOWN, "NOT AUDITED"),
        ("{}", "", audit.UNKNOWN, "NOT AUDITED"),
    ],
    ids=["none", "some", "left out", "nothing asked", "offline", "silent", "no report", "an empty report"],
)
def test_only_a_whole_report_is_good_news(said: str, complaint: str, code: int, told: str) -> None:
    """Whatever else comes, or does not, ends with another code and says so."""
    report = audit.read("x.txt", said, complaint)
    assert report.code == code
    assert told in "\n".join(report.lines)


LOCKS = sorted((Path(__file__).parents[2] / "requirements").glob("*.txt"))


@pytest.mark.parametrize("lock", LOCKS, ids=[lock.stem for lock in LOCKS])
def test_every_package_is_locked_with_its_hashes(lock: Path) -> None:
    """So that pip, which is told to require them, installs nothing else."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", lock.read_text(encoding="utf-8"))
    packages = [block for block in blocks if not block.startswith("#")]
    assert packages
    for block in packages:
        assert re.match(r"[A-Za-z0-9._-]+(\[[a-z0-9,-]+\])?==[^ ]+ ", block), block.splitlines()[0]
        assert "--hash=sha256:" in block
    assert "--require-hashes" in (lock.parents[1] / "scripts" / "venv").read_text(encoding="utf-8")
