"""What a gateway's route requires: read strictly, and made a check that asks for no less."""

from __future__ import annotations

import string
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.model import Environment
from formgate_server.core.verdict import CheckQuery
from formgate_server.wire.gateways.requirement import Ambiguous, Request, Requirement, Requirements
from formgate_server.wire.gateways.target import parameter, segments

REQUEST = Request("GET", "/v1/forms/f1/submissions?a=1", {"authorization": "Bearer k"}, "192.0.2.1")


def query(request: Request = REQUEST, **parameters: str) -> CheckQuery | Ambiguous:
    """Return what a route asks of a request."""
    return Requirement(parameters).query(request)


def test_everything_that_can_be_said() -> None:
    """Each parameter lands in its field of the check."""
    said = {
        "permission": "forms.read, forms.list",
        "resource": "forms/{3},folders/x/forms/{3}",
        "method": "request",
        "api_group": "forms",
        "environment": "test",
        "policy": "default",
        "cost": "7",
        "address": "x-forwarded-for:2",
    }
    headers = {"authorization": "Bearer k", "x-forwarded-for": "203.0.113.9, 198.51.100.7:4711, 10.0.0.1"}
    assert query(REQUEST._replace(headers=headers), **said) == CheckQuery(
        authorization="Bearer k",
        source_ip="198.51.100.7",
        permissions=("forms.read", "forms.list"),
        resources=("forms/f1", "folders/x/forms/f1"),
        api_group="forms",
        environment=Environment.TEST,
        http_method="GET",
        cost=7,
        policy="default",
    )


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"cost": "1"},
        {"policy": "default", "environment": "live"},
        {"permision": "forms.read"},
        {"permission": "forms.read", "permision": "forms.write"},
        {"permission": ""},
        {"permission": "forms.read,"},
        {"permission": "forms.read", "only": "authenticate"},
        {"only": "nothing"},
        {"method": "get"},
        {"method": "REQUEST or not"},
        {"resource": "forms/{0}"},
        {"resource": "forms/{x}"},
        {"resource": "forms/../x"},
        {"resource": "/forms"},
        {"only": "authenticate", "cost": "-1"},
        {"only": "authenticate", "cost": "1e3"},
        {"only": "authenticate", "cost": "9" * 5_000},
        {"only": "authenticate", "environment": "prod"},
        {"only": "authenticate", "key": "query:"},
        {"only": "authenticate", "key": "x api key"},
        {"only": "authenticate", "address": "x-forwarded-for:0"},
        {"only": "authenticate", "path": "any"},
    ],
)
def test_what_is_refused(said: dict[str, str]) -> None:
    """A route that requires nothing, or says a thing that is none, is no requirement."""
    with pytest.raises(InvalidArgumentError):
        Requirement(said)


def test_where_a_key_is() -> None:
    """The first place that has something counts; nothing anywhere is an empty Authorization, which is denied."""
    places = {"only": "authenticate", "key": "X-Api-Key,authorization,query:key"}
    asked = REQUEST._replace(headers={"x-api-key": "k1", "authorization": "Bearer k2"}, uri="/?key=k3")
    assert query(asked, **places) == CheckQuery(key="k1", source_ip="192.0.2.1")
    asked = asked._replace(headers={"authorization": "Bearer k2"})
    assert query(asked, **places) == CheckQuery(authorization="Bearer k2", source_ip="192.0.2.1")
    asked = asked._replace(headers={})
    assert query(asked, **places) == CheckQuery(key="k3", source_ip="192.0.2.1")
    assert query(asked, only="authenticate") == CheckQuery(authorization="", source_ip="192.0.2.1")


def test_by_method() -> None:
    """A route that names no permission relies on the method, if it says one: the check says so, to be denied by it."""
    for said, by_method in (
        ({"method": "request"}, True),
        ({"method": "DELETE"}, True),
        ({"method": "request", "resource": "forms/{3}"}, True),
        ({"method": "request", "permission": "forms.read"}, False),
        ({"resource": "forms/{3}"}, False),
        ({"only": "authenticate"}, False),
    ):
        asked = query(REQUEST, **said)
        assert isinstance(asked, CheckQuery)
        assert asked.by_method is by_method, said


@pytest.mark.parametrize("header", ["x-http-method-override", "x-http-method", "x-method-override"])
def test_a_second_method(header: str) -> None:
    """One that a header names, which what is behind the gateway may heed, is not decided about; nor is it asked for."""
    asked = REQUEST._replace(headers={"authorization": "Bearer k", header: "GET"})
    assert isinstance(query(asked, method="request"), Ambiguous)
    assert isinstance(query(asked, method="request", permission="forms.read"), Ambiguous)
    assert isinstance(query(asked, method="DELETE"), CheckQuery)
    assert isinstance(query(asked, permission="forms.read"), CheckQuery)


def test_what_the_gateway_does_not_tell() -> None:
    """A route that asks for what the gateway did not tell is an error, never a check that asks for less."""
    silent = Request("", "", {})
    for said in (
        {"method": "request"},
        {"resource": "forms/{3}"},
        {"only": "authenticate", "path": "plain"},
        {"only": "authenticate", "address": "x-real-ip"},
    ):
        with pytest.raises(InvalidArgumentError):
            query(silent, **said)
    with pytest.raises(InvalidArgumentError):
        query(REQUEST._replace(address="somewhere"), only="authenticate")
    short = REQUEST._replace(headers={"x-forwarded-for": "192.0.2.1"})
    with pytest.raises(InvalidArgumentError):
        query(short, only="authenticate", address="x-forwarded-for:2")


@pytest.mark.parametrize(
    ("template", "uri", "resource"),
    [
        ("forms/{3}", "/v1/forms/f1", "forms/f1"),
        ("forms/{3}", "/v1/forms/f1/", "forms/f1"),
        ("{2*}", "/v1/forms/f1/submissions/9", "forms/f1/submissions/9"),
        ("sites/s-{3}/forms", "/v1/forms/f1", "sites/s-f1/forms"),
        ("forms/{3}", "/v1/forms", None),
        ("forms/{3}", "/v1/forms/", None),
        ("forms/{3}", "/v1/forms/a~b", None),
        ("forms/{3}", "/v1/forms/*", None),
        ("{1}", "/*", None),
        ("{2*}", "/v1", None),
        ("{1*}", "/" + "a/" * 33, None),
    ],
)
def test_resources(template: str, uri: str, resource: str | None) -> None:
    """A resource has the path's own segments, which must be ids; a path without them names nothing, not everything."""
    asked = query(REQUEST._replace(uri=uri), resource=template)
    assert (asked.resources if isinstance(asked, CheckQuery) else None) == (resource and (resource,))


@pytest.mark.parametrize(
    "uri",
    [
        "", "*", "v1", "http://x/v1", "//v1", "/v1//f1", "/./v1", "/v1/..", "/v1/../f1", "/v1/.", "/v1;a/f1", "/v1\\f1",
        "/v1/%2e%2e/f1", "/v1/%2E", "/v1%2ff1", "/v1%5cf1", "/v1%5Cf1", "/%76%31", "/v1/%2", "/v1/%", "/v1/%zz",
        "/v1/%00", "/v1/%0a", "/v1/%7f", "/v1/%252e", "/v1/%3f", "/v1/%23", "/v1/%3b", "/v1/f 1", "/v1/f\t1",
        "/v1/f1#a", "/v1/é", "/v1/\x00", "/v1, /v2", "/" + "a/" * 70, "/" + "a" * 9_000,
    ],
)  # fmt: skip
def test_paths_that_are_not_plain(uri: str) -> None:
    """Whatever two servers could read in two ways has no segments."""
    assert segments(uri) is None


@given(st.text(alphabet=st.sampled_from(string.printable + "é%%%%//..;\\"), max_size=30).map(lambda text: "/" + text))
def test_plain_paths_have_one_reading(uri: str) -> None:
    """A path that is taken stays itself when it is decoded, resolved, merged or cut at parameters."""
    found = segments(uri)
    if found is None:
        return
    path = uri.partition("?")[0]
    once = unquote(path)
    assert "//" not in once
    assert not {".", ".."} & set(once.split("/"))
    assert not set(once) & set(";\\?#%")
    assert once.strip("/").split("/") == [unquote(part) for part in found] or not found
    assert unquote(once) == once


def test_query_parameters() -> None:
    """A key in the query is decoded once; said twice it is none."""
    assert parameter("/a?key=x%5fy&b=1", "key") == "x_y"
    assert parameter("/a?key=x&key=y", "key") == "x, y"
    assert parameter("/a", "key") is None
    assert parameter("/a?key=x%26y+z", "key") == "x&y z"
    assert parameter("/a?key", "key") == ""
    assert parameter("/a?" + "b=1&" * 500 + "key=x", "key") is None


@pytest.mark.parametrize("uri", ["/a?%6bey=x", "/a?k%65y=x", "/a?KEY=x", "/a?+key=x", "/a?b=1;key=x"])
def test_a_parameter_by_another_name(uri: str) -> None:
    """Only the name as it is written is a key's: a gateway that takes it out finds no other."""
    assert parameter(uri, "key") is None
    both = parameter(uri + "&key=y", "key")
    assert both == "y"


def test_a_request_tells_no_secret() -> None:
    """However a request gets into a log, the key in its headers or its query does not."""
    secret = "fg_live_secret"
    shown = Request("GET", f"/a?key={secret}", {"authorization": f"Bearer {secret}", "x-formgate-token": secret})
    assert secret not in f"{shown!r}{shown}"
    assert "GET" in repr(shown)


def test_requirements_are_read_once() -> None:
    """What a route says is read at its first request only, a mistake too."""
    requirements, reads = Requirements(), 0

    def said(**parameters: str) -> Any:
        def read() -> Any:
            nonlocal reads
            reads += 1
            return parameters.items()

        return read

    first = requirements("a", said(only="authenticate"))
    assert requirements("a", said(only="authenticate")) is first
    for _ in range(2):
        with pytest.raises(InvalidArgumentError):
            requirements("b", said())
    assert reads == 2


def test_what_is_said_twice() -> None:
    """Lists add up; anything else that stands twice is an error, not one of the two."""
    requirements = Requirements()
    both = requirements("a", lambda: [("permission", "a"), ("permission", "b")]).query(REQUEST)
    assert isinstance(both, CheckQuery)
    assert both.permissions == ("a", "b")
    with pytest.raises(InvalidArgumentError):
        requirements("b", lambda: [("only", "authenticate"), ("cost", "1"), ("cost", "0")])
