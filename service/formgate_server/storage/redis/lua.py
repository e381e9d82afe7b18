"""The scripts of the counters: files beside this one, each with what they share before it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from formgate_server.storage.redis.plan import Status
from formgate_server.storage.redis.script import Script

_FOLDER = Path(__file__).parent / "scripts"
_LETS_THROUGH = frozenset({Status.CHARGED, Status.KNOWN})


def _script(name: str, changed: Callable[[Any], bool] = lambda _: True) -> Script:
    parts = [(_FOLDER / f"{each}.lua").read_text(encoding="utf-8") for each in ("prelude", name)]
    return Script(name, "\n".join(parts), changed)


def _any_admitted(reply: Any) -> bool:  # noqa: ANN401 - a reply may be anything
    """Tell whether a check was let through: those that were not are told so whatever replicas have."""
    _, *results = reply
    return any(result[0] in _LETS_THROUGH for result in results)


CHARGE = _script("charge", _any_admitted)
LOAD = _script("load")
NEW = _script("new")
OUT = _script("out")
PUBLISH = _script("publish")
RAISE = _script("raise")
REFUND = _script("refund")
RESERVE = _script("reserve")
SEED = _script("seed")
