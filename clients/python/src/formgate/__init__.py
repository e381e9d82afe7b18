"""Formgate: the client's side.

``Client`` (threads) and ``AsyncClient`` (asyncio) ask the service; ``formgate.v1`` holds the generated stubs,
``formgate.rules`` the rules of a verdict. Names are imported where they are first used: ``formgate.rules``, which the
server imports too, loads no gRPC.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from formgate.aio import AsyncClient
    from formgate.asking import Check
    from formgate.client import Client
    from formgate.options import Tls
    from formgate.recorder import UsageRecorder
    from formgate.verdict import Verdict

__all__ = ["AsyncClient", "Check", "Client", "Tls", "UsageRecorder", "Verdict"]

_HOMES = {
    "AsyncClient": "formgate.aio",
    "Check": "formgate.asking",
    "Client": "formgate.client",
    "Tls": "formgate.options",
    "UsageRecorder": "formgate.recorder",
    "Verdict": "formgate.verdict",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
