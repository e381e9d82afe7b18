"""The listener of probes and metrics under those who mean it ill: it has no token to tell them by."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing
from http.server import HTTPServer

import pytest

from formgate_server.wire import http
from tests.support.server import eventually


@pytest.fixture
def server() -> Iterator[http.HttpServer]:
    """A listener whose server is well."""
    with closing(http.HttpServer("127.0.0.1", 0, live=lambda: True, ready=lambda: True)) as started:
        yield started


def get(server: http.HttpServer, path: str, accept: str = "*/*") -> tuple[int, str]:
    """Ask as a probe does."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers={"accept": accept})
    with urllib.request.urlopen(request, timeout=5) as answer:
        return answer.status, answer.headers["content-type"]


def threads() -> int:
    """How many threads answer requests."""
    return sum(each.name.endswith("(process_request_thread)") for each in threading.enumerate())


def test_many_who_say_nothing_keep_no_probe_from_its_answer(server: http.HttpServer) -> None:
    """Beyond 64 the oldest makes room: threads and files are bounded, and who asks at once is answered."""
    with ExitStack() as stack:
        for number in range(1, 301):
            stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port))))
            if number % 50 == 0:
                assert get(server, "/livez")[0] == 200
        assert eventually(lambda: threads() <= 64, 5, "no more than 64 threads")
        assert get(server, "/readyz")[0] == 200
    assert eventually(lambda: threads() == 0, 10, "all have ended")


def test_a_request_that_drips_is_ended(server: http.HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then holds a thread for no longer than its time."""
    monkeypatch.setattr(http, "_LONGEST_CONNECTION_SECONDS", 0.5)
    with closing(socket.create_connection(("127.0.0.1", server.port))) as drip:
        drip.sendall(b"GET /livez HTTP/1.1\r\nx: ")
        drip.settimeout(0.1)

        def ended() -> bool:
            try:
                drip.sendall(b"y")
                return drip.recv(100) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        assert eventually(ended, 10, "it is ended")
    assert get(server, "/livez")[0] == 200


def test_who_finds_no_file_free_costs_nothing(server: http.HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says at once again that somebody waits: it is tried now and then, until there is room."""
    tries: list[float] = []

    def no_file(_: object) -> None:
        tries.append(time.monotonic())
        raise OSError(errno.EMFILE, "Too many open files")

    with ExitStack() as stack:
        with monkeypatch.context() as context:
            context.setattr(HTTPServer, "get_request", no_file)
            waiting = stack.enter_context(closing(socket.create_connection(("127.0.0.1", server.port), 5)))
            eventually(lambda: len(tries) >= 4, 10, "a few tries")
            assert tries[3] - tries[0] >= 0.25
        waiting.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b" 200 " in waiting.recv(100)


def test_what_is_reset_or_unknown_writes_no_line(
    server: http.HttpServer, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Neither a connection that is cut nor a version of the format that is none leaves a trace for people to read."""
    caplog.set_level(logging.INFO)
    for _ in range(20):
        with closing(socket.create_connection(("127.0.0.1", server.port))) as cut:
            cut.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            cut.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n" * 3)
    assert get(server, "/metrics", "application/openmetrics-text; version=abc")[0] == 200
    assert eventually(lambda: threads() == 0, 10, "all have ended")
    assert (caplog.text, capfd.readouterr().err) == ("", "")
