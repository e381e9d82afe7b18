"""Ask the OSV database (osv.dev) for known vulnerabilities of every package that is locked.

Ends with 0 where there is none, with 1 where there are some, and with 3 where it could not be found out: offline, or of
a package that the database does not take. It never takes silence for good news. The locks named as arguments, or those
of what is shipped.
"""

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
AUDIT = ROOT / ".venv-audit" / "bin" / "pip-audit"
SHIPPED = ("runtime", "tracing")
NONE, SOME, UNKNOWN = 0, 1, 3
_SECONDS = 300
_CAN_NOT = "NOT AUDITED: {why}. Nothing is known of the vulnerabilities of {what}; try again where osv.dev is reached."


class Report(NamedTuple):
    """What came of a lock: the lines to print, and the exit code."""

    lines: list[str]
    code: int


def main(names: Iterable[str]) -> int:
    """Audit these locks; returns the exit code: what could not be found out weighs most."""
    code = NONE
    for name in names or SHIPPED:
        lock = ROOT / "requirements" / f"{name}.txt"
        report = read(lock.name, *ask(lock))
        print("\n".join(report.lines))
        code = max(code, report.code)
    return code


def ask(lock: Path) -> tuple[str, str]:
    """Return what pip-audit prints, and what it complains of. Nothing is installed or resolved: the lock is whole."""
    words = ["--requirement", str(lock), "--require-hashes", "--disable-pip", "--vulnerability-service", "osv"]
    try:
        done = subprocess.run(
            [AUDIT, *words, "--progress-spinner", "off", "--format", "json", "--timeout", "15"],
            check=False,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", type(error).__name__
    return done.stdout, done.stderr


def read(lock: str, printed: str, complained: str) -> Report:
    """Read what pip-audit said of a lock."""
    try:
        found: list[Any] = json.loads(printed)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = next((line for line in reversed(complained.splitlines()) if line.strip()), "no answer")
        return Report([_CAN_NOT.format(why=why.strip()[:200], what=lock)], UNKNOWN)
    lines = [
        f"{each['name']} {each['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'none yet'}"
        for each in found
        for flaw in each.get("vulns", ())
    ]
    skipped = [f"NOT AUDITED: {each['name']}: {each['skip_reason']}" for each in found if "skip_reason" in each]
    if skipped or not found:
        return Report([*lines, *skipped, _CAN_NOT.format(why="some packages were left out", what=lock)], UNKNOWN)
    if lines:
        return Report([*lines, f"{lock}: {len(lines)} known vulnerabilities"], SOME)
    return Report([f"{lock}: no known vulnerability in {len(found)} packages"], NONE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
