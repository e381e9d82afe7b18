from __future__ import annotations

import ast
import subprocess
import sys
from functools import partial
from typing import Any

import pytest

from formgate.middleware import ByRoute, Open, Rule, proxies
from formgate.middleware.answers import limit_fields
from formgate.middleware.proxies import TrustedProxies
from formgate.middleware.rules import Line, Rules
from formgate.verdict import Holder, LimitStatus

good = partial(Rule, only_authenticate=True)
"""Any good key will do."""


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/", "/"),
        ("GET", "/forms/export", "/forms/export"),
        ("GET", "/forms/f1", "/forms/{form_id}"),
        ("HEAD", "/forms/f1", "/forms/{form_id}"),
        ("PUT", "/forms/f1", None),
        ("DELETE", "/forms/export", None),  # a wider path's rule was not made for it
        ("DELETE", "/forms/f1", "/forms/{form_id}"),
        ("GET", "/files/", "/files/{name:path}"),
        ("GET", "/files/a/b/c", "/files/{name:path}"),
        ("GET", "/files", None),
        ("GET", "/forms/", None),
        ("PUT", "/any/f1", "/any/{id}"),
        ("WEBSOCKET", "/live", "/live"),
        ("GET", "/live", None),
        ("GET", "/a/b/c/d/e/f/g/h", None),
    ],
)
def test_the_narrowest_path_decides(method: str, path: str, found: str | None) -> None:
    """The first path that matches decides, also where it has no rule for the method: then the request is denied."""
    rules = Rules(
        [
            Open("GET", "/"),
            good("GET", "/forms/export"),
            good("GET", "/forms/{form_id}", resources=["forms/{form_id}"]),
            good("DELETE", "/forms/{id}", resources=["forms/{id}"]),
            Open("GET", "/files/{name:path}"),
            ByRoute("*", "/any/{id}"),
            good("WEBSOCKET", "/live"),
        ]
    )
    line = rules.find(method, path)
    assert (line and line.rule.path.replace("{id}", "{form_id}")) == (found and found.replace("{id}", "{form_id}"))


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([good("GET", "/forms/{id}"), good("GET", "/forms/export")], "never used"),
        ([good("GET", "/{rest:path}"), good("POST", "/forms")], "never used"),
        ([good("GET", "/forms/{id}"), Open("GET", "/forms/{form_id}")], "never used"),
        ([good("*", "/forms"), Open("GET", "/forms")], "never used"),
        ([good("GET", "/a/{x}/c"), Open("GET", "/a/b/{y}")], "neither is the narrower"),
        ([good("GET", "/a/{x}/c"), Open("POST", "/a/b/{y:path}")], "neither is the narrower"),
        ([good("GET", "forms")], "must begin with /"),
        ([good("GET", "/forms//f1")], "no empty or dotted segment"),
        ([good("GET", "/forms/../f1")], "no empty or dotted segment"),
        ([good("GET", "/forms/{id}.json")], "a whole segment"),
        ([good("GET", "/forms/{rest:path}/x")], "last segment"),
        ([good("GET", "/{id}/{id}")], "twice"),
        ([Line("GET", "/forms")], "a Rule, Open or ByRoute"),
        ([good("", "/forms")], "no method"),
        ([good([], "/forms")], "no method"),
        ([good("GET", "/forms/{id}", resources=["forms/{form_id}"])], "form_id"),
    ],
)
def test_a_table_that_can_not_be_meant_is_refused(rules: list[Any], told: str) -> None:
    """A rule that is never used, two that overlap, a template that is none: the application does not start."""
    with pytest.raises((ValueError, TypeError), match=told):
        Rules(rules)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"permissions": []},
        {"permissions": ["forms.read"], "only_authenticate": True},
        {"permissions": ["forms.read"], "by_method": True},
        {"only_authenticate": True, "by_method": True},
        {"by_method": True, "method": "WEBSOCKET"},
        {"by_method": True, "method": ["GET", "websocket"]},
        {"only_authenticate": True, "resources": ["forms/../x"]},
        {"only_authenticate": True, "resources": ["/forms"]},
        {"only_authenticate": True, "resources": [""]},
        {"only_authenticate": True, "resources": "forms/{id}x/{"},
    ],
)
def test_a_rule_that_can_not_be_meant_is_refused(fields: dict[str, Any]) -> None:
    """It says so where it is written, and not at the first request; that nothing is needed is never left unsaid."""
    with pytest.raises(ValueError, match=r"only_authenticate|resource|WebSocket"):
        Rule(**{"method": "GET", "path": "/forms/{id}", **fields})


def test_proxies_that_are_none_are_refused() -> None:
    """A mistyped block trusts nobody and does not start."""
    with pytest.raises(ValueError, match="host bits"):
        TrustedProxies(["10.0.0.1/8"])


def test_what_can_be_no_address_is_not_kept() -> None:
    """X-Forwarded-For is anybody's to write, at any length: what is remembered is bounded in size, too."""
    before = proxies._readable.cache_info().currsize
    assert proxies.readable("1" * 100_000) == ""
    assert proxies._readable.cache_info().currsize == before
    assert proxies.readable("2001:db8:1111:2222:3333:4444:255.255.255.255") != ""


def test_limit_fields_are_structured_fields() -> None:
    """Names are strings with their quotes escaped, numbers fit, and two limits of one name are told apart."""
    limits = [
        LimitStatus("rate", Holder.KEY, 10, 3),
        LimitStatus("rate", Holder.ACCOUNT, 10**18, 10**17),
        LimitStatus('a"\\é', Holder.KEY, 1, 0),
        LimitStatus("free", Holder.KEY, None, 0, unlimited=True),
    ]
    assert limit_fields(limits, 0.0) == [
        ("ratelimit-policy", '"rate";q=10, "account.rate";q=999999999999999, "a\\"\\\\?";q=1'),
        ("ratelimit", '"rate";r=3, "account.rate";r=999999999999999, "a\\"\\\\?";r=0'),
    ]
    assert limit_fields(limits[3:], 0.0) == []


def test_the_middlewares_import_no_framework() -> None:
    """They fit beside whatever their user runs: no framework is loaded by them, and HTTP needs no gRPC either."""
    code = """
import sys
import formgate.middleware.asgi, formgate.middleware.wsgi
assert "grpc" not in sys.modules
import formgate.middleware.grpc, formgate.testing
known = set(sys.stdlib_module_names) | {"formgate", "grpc", "google"}
new = {name.partition(".")[0] for name in sys.modules} - known
print(sorted(name for name in new if not name.startswith(("_", "cython_runtime"))))
"""
    printed = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout
    assert not set(ast.literal_eval(printed)) & {"fastapi", "starlette", "flask", "werkzeug", "django", "pydantic"}
