"""The same small application in each framework, its routes behind the same table of rules.

Handlers answer with JSON: which one it was, with what, and the key that the middleware says was checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from types import ModuleType
from typing import Any

import django
import django.conf
import django.core.wsgi
import django.http
import django.urls
from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from formgate.middleware import ByRoute, Open, Rule, asgi, current_verdict, wsgi
from formgate.testing import FakeFormgate
from tests.support.calling import AsgiCall, Call, WsgiCall

RULES: tuple[Rule | Open | ByRoute, ...] = (
    Open("GET", "/health"),
    Open("GET", "/files/{name:path}"),
    Rule("GET", "/forms/export", permissions=["forms.export"], resources=["organization"]),
    Rule("GET", "/forms/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"]),
    Rule("DELETE", "/forms/{form_id}", permissions=["forms.delete"], resources=["forms/{form_id}"]),
    Rule(
        ["GET", "POST"],
        "/forms/{form_id}/submissions/{number}",
        permissions="submissions.read",
        resources=["forms/{form_id}/submissions/{number}", "forms/{form_id}"],
    ),
)
PATHS = ("/health", "/files/{name:path}", "/forms/export", "/forms/{form_id}", "/forms/{form_id}/submissions/{number}")
FORGOTTEN = "/admin"
"""A route that no rule is for."""


def seen(route: str, **values: str) -> dict[str, Any]:
    """Return what a handler answers."""
    try:
        key = current_verdict().key
    except LookupError:
        return {"route": route, "values": values, "key": None}
    assert key is not None
    return {"route": route, "values": values, "key": key.key_id}


def starlette(fake: FakeFormgate, rules: Iterable[Any] = RULES, **options: Any) -> Call:
    """Make it with Starlette."""

    def handler(route: str) -> Callable[[Request], Any]:
        async def handle(request: Request) -> JSONResponse:
            verdict = request.scope["formgate"]
            found = seen(route, **request.path_params)
            assert found["key"] == (verdict and verdict.key.key_id)
            return JSONResponse(found)

        return handle

    methods = ["GET", "POST", "DELETE"]
    app = Starlette(routes=[Route(path, handler(path), methods=methods) for path in (*PATHS, FORGOTTEN)])
    app.add_middleware(asgi.FormgateMiddleware, client=fake.async_client, rules=rules, **options)
    return AsgiCall(app)


def fastapi(fake: FakeFormgate, rules: Iterable[Any] = RULES, **options: Any) -> Call:
    """Make it with FastAPI, whose handlers run in threads."""
    app = FastAPI(openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return seen("/health")

    @app.get("/files/{name:path}")
    def files(name: str) -> dict[str, Any]:
        return seen("/files/{name:path}", name=name)

    @app.get("/forms/export")
    def export() -> dict[str, Any]:
        return seen("/forms/export")

    @app.get("/forms/{form_id}")
    @app.delete("/forms/{form_id}")
    def form(form_id: str) -> dict[str, Any]:
        return seen("/forms/{form_id}", form_id=form_id)

    @app.get("/forms/{form_id}/submissions/{number}")
    @app.post("/forms/{form_id}/submissions/{number}")
    def submission(form_id: str, number: str) -> dict[str, Any]:
        return seen("/forms/{form_id}/submissions/{number}", form_id=form_id, number=number)

    @app.get(FORGOTTEN)
    def forgotten() -> dict[str, Any]:
        return seen(FORGOTTEN)

    app.add_middleware(asgi.FormgateMiddleware, client=fake.async_client, rules=rules, **options)
    return AsgiCall(app)


def flask(fake: FakeFormgate, rules: Iterable[Any] = RULES, **options: Any) -> Call:
    """Make it with Flask."""
    app = Flask(__name__)
    for path in (*PATHS, FORGOTTEN):
        written = path.replace("{name:path}", "<path:name>").replace("{", "<").replace("}", ">")

        def handle(_route: str = path, **values: str) -> dict[str, Any]:
            return seen(_route, **values)

        app.add_url_rule(written, path, handle, methods=["GET", "POST", "DELETE"])
    app.wsgi_app = wsgi.FormgateMiddleware(app.wsgi_app, fake.client, rules, **options)  # type: ignore[method-assign]
    return WsgiCall(app)


def in_django(fake: FakeFormgate, rules: Iterable[Any] = RULES, **options: Any) -> Call:
    """Make it with Django."""
    return WsgiCall(wsgi.FormgateMiddleware(_django(), fake.client, rules, **options))


@cache
def _django() -> Any:
    """Make the one application that Django has in a process."""

    def handler(route: str) -> Callable[..., Any]:
        def handle(request: Any, **values: str) -> Any:
            return django.http.HttpResponse(json.dumps(seen(route, **values)), content_type="application/json")

        return handle

    patterns = [
        django.urls.path(
            path[1:].replace("{name:path}", "<path:name>").replace("{", "<str:").replace("}", ">"), handler(path)
        )
        for path in (*PATHS, FORGOTTEN)
    ]
    urls = ModuleType("urls")
    urls.urlpatterns = patterns  # type: ignore[attr-defined]
    django.conf.settings.configure(ROOT_URLCONF=urls, ALLOWED_HOSTS=["*"], SECRET_KEY="made up", LOGGING_CONFIG=None)
    return django.core.wsgi.get_wsgi_application()


Make = Callable[..., Call]
FRAMEWORKS: dict[str, Make] = {"starlette": starlette, "fastapi": fastapi, "flask": flask, "django": in_django}
