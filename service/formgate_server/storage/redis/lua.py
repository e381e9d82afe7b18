"""The scripts of the counters: files beside this one, each with what they share before it."""

from __future__ import annotations

from pathlib import Path

from formgate_server.storage.redis.script import Script

_FOLDER = Path(__file__).parent / "scripts"


def _script(name: str) -> Script:
    parts = [(_FOLDER / f"{each}.lua").read_text(encoding="utf-8") for each in ("prelude", name)]
    return Script(name, "\n".join(parts))


CHARGE = _script("charge")
LOAD = _script("load")
NEW = _script("new")
OUT = _script("out")
PUBLISH = _script("publish")
RAISE = _script("raise")
REFUND = _script("refund")
RESERVE = _script("reserve")
SEED = _script("seed")
