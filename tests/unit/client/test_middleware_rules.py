from __future__ import annotations

import ast
import subprocess
import sys
from typing import Any

import pytest

from formgate.middleware import ByRoute, Open, Rule
from formgate.middleware.answers import limit_fields
from formgate.middleware.proxies import TrustedProxies
from formgate.middleware.rules import Line, Rules
from formgate.verdict import Holder, LimitStatus


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
            Rule("GET", "/forms/export"),
            Rule("GET", "/forms/{form_id}", resources=["forms/{form_id}"]),
            Rule("DELETE", "/forms/{id}", resources=["forms/{id}"]),
            Open("GET", "/files/{name:path}"),
            ByRoute("*", "/any/{id}"),
            Rule("WEBSOCKET", "/live"),
        ]
    )
    line = rules.find(method, path)
    assert (line and line.rule.path.replace("{id}", "{form_id}")) == (found and found.replace("{id}", "{form_id}"))


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([Rule("GET", "/forms/{id}"), Rule("GET", "/forms/export")], "never used"),
        ([Rule("GET", "/{rest:path}"), Rule("POST", "/forms")], "never used"),
        ([Rule("GET", "/forms/{id}"), Open("GET", "/forms/{form_id}")], "never used"),
        ([Rule("*", "/forms"), Open("GET", "/forms")], "never used"),
        ([Rule("GET", "/a/{x}/c"), Open("GET", "/a/b/{y}")], "neither is the narrower"),
        ([Rule("GET", "/a/{x}/c"), Open("POST", "/a/b/{y:path}")], "neither is the narrower"),
        ([Rule("GET", "forms")], "must begin with /"),
        ([Rule("GET", "/forms//f1")], "no empty or dotted segment"),
        ([Rule("GET", "/forms/../f1")], "no empty or dotted segment"),
        ([Rule("GET", "/forms/{id}.json")], "a whole segment"),
        ([Rule("GET", "/forms/{rest:path}/x")], "last segment"),
        ([Rule("GET", "/{id}/{id}")], "twice"),
        ([Line("GET", "/forms")], "a Rule, Open or ByRoute"),
        ([Rule("", "/forms")], "no method"),
        ([Rule([], "/forms")], "no method"),
        ([Rule("GET", "/forms/{id}", resources=["forms/{form_id}"])], "form_id"),
    ],
)
def test_a_table_that_can_not_be_meant_is_refused(rules: list[Any], told: str) -> None:
    """A rule that is never used, two that overlap, a template that is none: the application does not start."""
    with pytest.raises((ValueError, TypeError), match=told):
        Rules(rules)


@pytest.mark.parametrize(
    "fields",
    [
        {"permissions": ["forms.read"], "only_authenticate": True},
        {"resources": ["forms/../x"]},
        {"resources": ["/forms"]},
        {"resources": [""]},
        {"resources": "forms/{id}x/{"},
    ],
)
def test_a_rule_that_can_not_be_meant_is_refused(fields: dict[str, Any]) -> None:
    """It says so where it is written, and not at the first request."""
    with pytest.raises(ValueError, match=r"only_authenticate|resource"):
        Rule("GET", "/forms/{id}", **fields)


def test_proxies_that_are_none_are_refused() -> None:
    """A mistyped block trusts nobody and does not start."""
    with pytest.raises(ValueError, match="host bits"):
        TrustedProxies(["10.0.0.1/8"])


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
