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
from formgate.rules.grants import Level
from formgate.verdict import Environment, Holder, LimitStatus

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


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"level": "reed"}, "'reed' is no level"),
        ({"level": 0}, "is no level"),
        ({"environment": "prod"}, "'prod' is no environment"),
        ({"environment": 0}, "is no environment"),
        ({"cost": -1}, "cost -1"),
        ({"cost": "2"}, "cost '2'"),
        ({"cost": True}, "cost True"),
    ],
)
def test_a_value_that_a_check_can_not_have_is_refused(fields: dict[str, Any], told: str) -> None:
    """A mistyped level, environment or cost: the application does not start, in place of 503 at every request."""
    with pytest.raises(ValueError, match=told):
        good("GET", "/forms", **fields)


def test_values_that_a_check_can_have() -> None:
    """Names in either case, the enumerations' members, and what costs nothing."""
    for level, environment, cost in (
        ("read", "live", 0),
        ("MANAGE", "TEST", 1),
        (Level.WRITE, Environment.TEST, 10**6),
    ):
        good("GET", "/forms", level=level, environment=environment, cost=cost)


SLASHES = [
    # The wide rule does not answer for the other form of a path that a narrower one names.
    ("/admin", "/{rest:path}", "/admin/", None),
    ("/admin", "/{rest:path}", "/admin", "/admin"),
    ("/admin/", "/{rest:path}", "/admin", None),
    ("/admin/", "/{rest:path}", "/admin/", "/admin/"),
    ("/admin/{id}", "/admin/{rest:path}", "/admin/7/", None),
    ("/admin", "/admin/{rest:path}", "/admin/", None),
    ("/admin", "/admin/{rest:path}", "/admin/7", "/admin/{rest:path}"),
    ("/admin", "/{any}/{rest:path}", "/admin/", None),
    ("/admin/", "/{any}", "/admin", None),
    ("/admin", "/{any}/", "/admin/", None),
    ("/admin/{id}", "/{any}/7/", "/admin/7/", None),  # neither is the narrower
    ("/admin/{rest:path}", "/{rest:path}", "/admin", None),
    ("/admin/{rest:path}", "/{rest:path}", "/admin/", "/admin/{rest:path}"),
    # What the table names it decides.
    ("/admin", "/admin/", "/admin", "/admin"),
    ("/admin", "/admin/", "/admin/", "/admin/"),
    ("/forms/{id}", "/forms/{id}/", "/forms/f1/", "/forms/{id}/"),
    # No rule for one of the forms: that one is denied, or the only one decides.
    ("/admin", "/forms", "/admin/", None),
    ("/admin/", "/forms", "/admin", None),
    ("/", "/{rest:path}", "/", "/"),
    ("/", "/{rest:path}", "/x/", "/{rest:path}"),
    ("/admin", "/files/{rest:path}", "/files/", "/files/{rest:path}"),
    ("/admin", "/files/{rest:path}", "/files/a/", "/files/{rest:path}"),
    ("/admin", "/files/{rest:path}", "/files/a", "/files/{rest:path}"),
]


@pytest.mark.parametrize(("first", "second", "path", "found"), SLASHES)
@pytest.mark.parametrize("lenient", [False, True], ids=["open below", "open above"])
def test_a_slash_at_the_end_is_no_way_around_a_rule(
    first: str, second: str, path: str, found: str | None, *, lenient: bool
) -> None:
    """Frameworks may route both forms to the same code: a wide rule decides none where a narrower has the other."""
    rules = [Open("GET", first), good("GET", second)] if lenient else [good("GET", first), Open("GET", second)]
    line = Rules(rules).find("GET", path)
    assert (line and line.rule.path) == found


def test_only_so_many_proxies_count() -> None:
    """What is behind 32 trusted ones is not known, and is not looked for: the header may be as long as it likes."""
    trusting = TrustedProxies(["10.0.0.0/8"])
    for hops, client in ((31, "192.0.2.1"), (32, ""), (200, "")):
        assert trusting.client("10.0.0.1", ", ".join(["192.0.2.1", *["10.0.0.2"] * hops])) == client
    assert trusting.client("10.0.0.1", "x," * 500_000 + "192.0.2.1") == "192.0.2.1"


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
