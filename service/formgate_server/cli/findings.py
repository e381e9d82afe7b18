"""How it looks whether an audit trail is as it was written."""

from __future__ import annotations

import json as jsons
from collections.abc import Iterator, Mapping, Sequence

from rich.text import Text

from formgate_server.cli import output, people
from formgate_server.cli.text import safe
from formgate_server.core.verify_audit import Findings

UNSEEN = (
    "Not seen: an end that was cut off together with the account's head of the chain, and what was written by somebody "
    "who had the pepper. An `audit export` that is kept elsewhere shows both."
)


def show(found: Mapping[str, Findings], *, json: bool) -> None:
    """Print what was found, an account a line."""
    if json:
        lines = ",\n".join(jsons.dumps(_fields(account, each)) for account, each in found.items())
        print(f"[\n{lines}\n]" if lines else "[]")  # noqa: T201
        return
    if found:
        made = people.table("ACCOUNT ID", "TRAIL", "SOUND", "ROWS")
        for account, each in found.items():
            made.add_row(safe(account) or "of no account", _verdict(each), f"{each.sound:,}", "; ".join(_rows(each)))
        output.show_people(made)
    output.stderr().print(Text(UNSEEN, style="dim"))


def _verdict(findings: Findings) -> Text:
    if findings.altered:
        return Text("altered", style="bold red")
    if findings.missing:
        return Text("missing", style="bold red")
    return Text("unchecked", style="yellow") if findings.unchecked else Text("sound", style="green")


def _rows(findings: Findings) -> Iterator[str]:
    for name in ("altered", "missing", "unchecked"):
        if numbers := getattr(findings, name):
            yield f"{name}: {ranges(numbers)}"


def ranges(numbers: Sequence[int]) -> str:
    """Write rising numbers shortly: ``1, 3-5``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in parts)


def _fields(account: str, findings: Findings) -> dict[str, object]:
    return {
        "account_id": account,
        "intact": findings.intact,
        "sound": findings.sound,
        "altered": findings.altered,
        "missing": findings.missing,
        "unchecked": findings.unchecked,
    }
