"""Calls an ASGI or WSGI application in this process, with the very bytes of a path, as a server would."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes


@dataclass(frozen=True)
class Answered:
    """What came back."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return the one field of that name, None: it is not there; AssertionError where there are several."""
        values = [value for each, value in self.headers if each.lower() == name]
        assert len(values) <= 1, self.headers
        return values[0] if values else None


class Call(Protocol):
    """Calls an application; ``target`` is as it would be on the wire."""

    def __call__(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, peer: str = "192.0.2.1"
    ) -> Answered:
        """Return its answer."""
        ...


class AsgiCall:
    """As uvicorn calls: the path decoded as UTF-8, and the raw one beside it."""

    def __init__(self, app: Any, **scope: Any) -> None:
        self.app = app
        self.scope = scope

    def __call__(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, peer: str = "192.0.2.1"
    ) -> Answered:
        """Return the answer."""
        raw, _, query = target.encode().partition(b"?")
        root: str = self.scope.get("root_path", "")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": root + unquote_to_bytes(raw).decode(errors="replace"),
            "raw_path": root.encode() + raw,
            "query_string": query,
            "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
            "client": (peer, 4711) if peer else None,
            "server": ("127.0.0.1", 80),
            **self.scope,
        }
        return asyncio.run(self._run(scope))

    async def _run(self, scope: dict[str, Any]) -> Answered:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        start, *bodies = sent
        assert start["type"] == "http.response.start"
        assert {each["type"] for each in bodies} == {"http.response.body"}
        headers = tuple((name.decode(), value.decode()) for name, value in start["headers"])
        return Answered(start["status"], headers, b"".join(each.get("body", b"") for each in bodies))


class WsgiCall:
    """As wsgiref calls: the path's bytes decoded, and nothing of how they were written."""

    def __init__(self, app: Any, **environ: Any) -> None:
        self.app = app
        self.environ = environ

    def __call__(
        self, target: str, method: str = "GET", headers: Mapping[str, str] | None = None, peer: str = "192.0.2.1"
    ) -> Answered:
        """Return the answer."""
        raw, _, query = target.partition("?")
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(raw.encode()).decode("latin-1"),
            "QUERY_STRING": query,
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": peer,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(),
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **{"HTTP_" + name.upper().replace("-", "_"): value for name, value in (headers or {}).items()},
            **self.environ,
        }
        started: list[Any] = []
        written: list[bytes] = []

        def start_response(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Any:
            started[:] = [status, fields]
            return written.append

        chunks = self.app(environ, start_response)
        try:
            body = b"".join([*written, *chunks])
        finally:
            if hasattr(chunks, "close"):
                chunks.close()
        status, fields = started
        assert all(isinstance(each, str) for field in fields for each in field)
        return Answered(int(status.split()[0]), tuple(fields), body)
