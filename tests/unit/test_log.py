"""The log shows no secret, and nothing that is logged can forge a line of it."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from formgate_server import log
from formgate_server.core.secrets import TOKEN_PREFIX, new_secret

FORMS: list[Literal["console", "json"]] = ["console", "json"]
FORGERIES = ["\n", "\r", "\r\n", "\0", "\x0b", "\x0c", "\x1b[2K", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u202e"]
FORGED = '{"event": "forged", "level": "info"}'
SECRETS = [new_secret("fg_live_"), new_secret(TOKEN_PREFIX), new_secret("a_b-c_d_")]


@pytest.fixture(params=FORMS)
def lines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """The log, set up in each form, and what has come of it."""
    root = logging.getLogger()
    kept = (
        root.handlers[:],
        root.level,
        {name: logging.getLogger(name).level for name in log._NOISY},
    )
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    log.set_up("debug", request.param)
    yield Lines(stream, request.param)
    root.handlers[:] = kept[0]
    root.setLevel(kept[1])
    for name, level in kept[2].items():
        logging.getLogger(name).setLevel(level)
    structlog.reset_defaults()


class Lines:
    """What was logged."""

    def __init__(self, stream: io.StringIO, form: str) -> None:
        self._stream = stream
        self.form = form

    @property
    def text(self) -> str:
        """All of it."""
        return self._stream.getvalue()

    @property
    def events(self) -> list[str]:
        """The lines that a reader takes for events: those of a traceback are indented."""
        physical = self.text.split("\n")
        assert physical.pop() == ""
        if self.form == "json":
            assert all(json.loads(line) for line in physical)
            return physical
        return [line for line in physical if line and not line.startswith(" ")]


def logger() -> structlog.stdlib.BoundLogger:
    """Return a new logger, that no earlier configuration is cached in."""
    made: structlog.stdlib.BoundLogger = structlog.get_logger("test")
    return made


def fail(text: str) -> None:
    """Raise what has the text in its message, and in its cause's."""
    raise ValueError(text) from KeyError(text)


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_value_forges_a_line(lines: Lines, forgery: str) -> None:
    """Wherever a control character stands, in the event too, one event is one line and the character is shown."""
    text = f"harmless{forgery}{FORGED}"
    logger().info(text)
    logger().info("event", value=text)
    logger().info("event", value={text: [text]})
    logger().info("event", **{text: 1})
    logger().info("event", value=ValueError(text))
    logger().info("event", value=text.encode())
    logging.getLogger("library").info("event %s", text)
    logging.getLogger("library").info("event", extra={"value": text})
    assert len(lines.events) == 8
    assert not set(lines.text) & set(forgery) - {"\n"} - set("[2K")


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_exception_forges_a_line(lines: Lines, forgery: str) -> None:
    """An exception's own words can not pass for an event, with structlog or without."""
    try:
        fail(f"harmless{forgery}{FORGED}")
    except ValueError:
        logger().exception("it failed")
        logging.getLogger("library").exception("it failed")
    assert "harmless" in lines.text
    assert [line for line in lines.text.split("\n") if line.startswith(FORGED)] == []
    assert len(lines.events) == 2
    assert not set(lines.text) & set(forgery) - {"\n"} - set("[2K")


@pytest.mark.parametrize("secret", SECRETS, ids=["key", "token", "other"])
@pytest.mark.parametrize(
    "around",
    [
        "{}",
        "Bearer {}",
        "key={}",
        "{}x",
        "x{}",
        "'{}'",
        "\n{}\n",
        "{0}{0}",
        "{0},{0}",
        "x" * 3_980 + "{}",
        "_" + "{} " * 200,
    ],
)
def test_no_secret_is_logged(lines: Lines, secret: str, around: str) -> None:
    """Whatever stands around it, cut off or not, in whatever is logged, exceptions included."""
    text = around.format(secret) if "{0}" in around else around.replace("{}", secret)
    logger().info(text)
    logger().info("event", value=text, nested={"a": [(text,)]}, raw=text.encode(), error=ValueError(text))
    logger().info("event", **{text: 1})
    logging.getLogger("library").warning("event %r", text)
    try:
        fail(text)
    except ValueError:
        logger().exception("it failed")
        logging.getLogger("library").exception("it failed")
    body = secret[-49:]
    assert "[secret]" in lines.text
    assert body[:24] not in lines.text
    assert body[24:] not in lines.text


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_whatever_is_shown_as_a_bearer_is_a_secret(lines: Lines, scheme: str) -> None:
    """Also one that does not look like ours."""
    logger().info(f"{scheme} hunter2, and {scheme}  hunter2")
    assert "hunter2" not in lines.text


def test_ids_are_shown() -> None:
    """An id is no secret, and a log without them is of no use."""
    event = {
        "key_id": "key_3mgw7dCQCoyF53tB7g9C43",
        "sha1": "a_" + "0123456789abcdef" * 2 + "01234567",
        "n": 1,
        "x": None,
    }
    assert log.clean(None, "", dict(event)) == event


@given(st.text(), st.sampled_from(SECRETS), st.text())
def test_nothing_around_a_secret_saves_it(before: str, secret: str, after: str) -> None:
    """No text before or after it hides a secret from being blotted out."""
    cleaned = log.clean(None, "", {"event": before + secret + after, "exception": before + secret + after})
    assert not any(secret[-49:] in str(value) for value in cleaned.values())


@given(st.text(), st.text())
def test_a_cleaned_text_is_one_line(before: str, after: str) -> None:
    """No control character, line separator or lone surrogate is left."""
    cleaned = log.clean(None, "", {"event": before + "\n" + after})["event"]
    assert len(cleaned.splitlines()) == 1
    assert cleaned.encode()


def test_the_drivers_are_quiet(lines: Lines) -> None:
    """They would log each statement with its values, and each poll."""
    for name in ("aiosqlite", "asyncio", "grpc._cython.cygrpc"):
        logging.getLogger(name).debug("a statement with its values")
    assert lines.text == ""


def test_a_worker_that_starts_lists_no_parts_of_a_library(lines: Lines) -> None:
    """Eight lines of every worker, of nothing that could be otherwise; that the database is upgraded is told."""
    logging.getLogger("alembic.runtime.plugins").info("setup plugin alembic.autogenerate.schemas")
    logging.getLogger("alembic.runtime.migration").info("Running upgrade 0003 -> 0004")
    assert "setup plugin" not in lines.text
    assert "Running upgrade" in lines.text
