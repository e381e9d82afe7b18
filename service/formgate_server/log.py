"""The log: structlog, a line an event; for people on a terminal, else JSON.

Secrets never reach it: whatever looks like one is blotted out, wherever it stands. Nor can a value forge a line:
control characters are shown, not sent; a traceback's lines, which only people are shown as lines, are indented.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

_SECRET = re.compile(r"_[0-9A-Za-z]{49,}")  # longer ones too: one with something stuck to it is still a secret
_BEARER = re.compile(r"(?i)(bearer\s+)\S+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_TRACES = frozenset({"exception", "stack"})
_LONGEST = 4_000
_NOISY = {
    # A line for every statement, every poll, every call.
    **dict.fromkeys(("aiosqlite", "asyncio", "grpc"), logging.INFO),
    # A line for each of its parts, whenever a worker starts.
    "alembic.runtime.plugins": logging.WARNING,
    # What strangers send before anybody has looked at it: each broken value, whole, with a trace.
    "grpc._cython.cygrpc": logging.CRITICAL,
}


def set_up(level: str, form: Literal["console", "json"] | None) -> None:
    """Send all logs, the libraries' too, to standard error."""
    if form is None:
        form = "console" if sys.stderr.isatty() else "json"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        clean,
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy, least in _NOISY.items():
        logging.getLogger(noisy).setLevel(max(least, root.level))


def blot(text: str) -> str:
    """Blot out what looks like a secret."""
    return _SECRET.sub("_[secret]", text)


def clean(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Blot out secrets and show control characters, in every text of the event."""
    return {
        _clean(key): "\n".join("    " + _clean(line) for line in value.splitlines())
        if key in _TRACES and isinstance(value, str)
        else _clean(value)
        for key, value in event.items()
    }


def _clean(value: Any) -> Any:  # noqa: ANN401 - anything may be logged
    if isinstance(value, str):
        text = _BEARER.sub(r"\1[secret]", blot(value))[:_LONGEST]  # cut last, so that no half of a secret is left
        return _CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _clean(str(value)) if not isinstance(value, logging.LogRecord) else value
