from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st

from formgate.errors import InvalidRequestError
from formgate.fallback import level_of
from formgate.middleware import Open, Rule, wsgi
from formgate.middleware.answers import Answers
from formgate.rules.grants import Level
from formgate.testing import FakeFormgate, FakeKey, FakeLimit, Grant, Reason
from formgate.verdict import HttpDenial, Verdict
from tests.support.calling import Answered, AsgiCall, Call, WsgiCall
from tests.support.protected import FORGOTTEN, FRAMEWORKS, Make

MINUTE = timedelta(minutes=1)
NOON = 1_764_331_200.0


@pytest.fixture
def fake() -> FakeFormgate:
    """A Formgate whose clock stands."""
    return FakeFormgate(clock=lambda: NOON)


@pytest.fixture
def key(fake: FakeFormgate) -> FakeKey:
    """A key that may read form f1 and what was submitted to it, twice a minute."""
    limits = [FakeLimit("rate", 2, MINUTE), FakeLimit("daily", 10, calendar="day"), FakeLimit("free", None, MINUTE)]
    return fake.add_key(grants=[Grant("forms/f1", ("forms.read", "submissions.read"))], limits=limits)


@pytest.fixture(params=FRAMEWORKS)
def make(request: pytest.FixtureRequest) -> Make:
    """How the application is made with each framework."""
    return FRAMEWORKS[request.param]


@pytest.fixture
def call(make: Make, fake: FakeFormgate) -> Call:
    """The application behind RULES, its clock that of the fake."""
    return make(fake, clock=lambda: NOON)


def error_of(answered: Answered) -> str:
    """Return the reason that a denial's body gives."""
    reason: str = json.loads(answered.body)["error"]["reason"]
    return reason


def test_what_a_rule_allows_goes_through_with_its_verdict(call: Call, fake: FakeFormgate, key: FakeKey) -> None:
    """The handler runs, knows the key, and the service was asked for just what the rule says."""
    answered = call("/forms/f1/submissions/7?x=%2F", headers=key.headers)
    assert answered.status == 200
    assert json.loads(answered.body) == {
        "route": "/forms/{form_id}/submissions/{number}",
        "values": {"form_id": "f1", "number": "7"},
        "key": key.key_id,
    }
    (check,) = fake.checks
    assert (check.permissions, check.authorization) == (("submissions.read",), key.authorization)
    assert (check.resources, check.http_method) == (("forms/f1/submissions/7", "forms/f1"), "GET")
    assert (check.source_ip, check.request_id) == ("192.0.2.1", "")


def test_an_open_route_asks_nobody(call: Call, fake: FakeFormgate) -> None:
    """What is open is so without a key, and nothing of it reaches the service."""
    answered = call("/files/a/b.txt")
    assert (answered.status, json.loads(answered.body)["key"]) == (200, None)
    assert answered.header("ratelimit") is None
    assert not fake.checks


@pytest.mark.parametrize(
    ("target", "method"), [(FORGOTTEN, "GET"), ("/nowhere", "GET"), ("/health", "POST"), ("/forms/f1", "PUT")]
)
def test_what_no_rule_matches_is_denied(
    call: Call, fake: FakeFormgate, key: FakeKey, target: str, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A forgotten route, an unknown one, another method: 403 whatever the key, and an operator is told."""
    answered = call(target, method, key.headers)
    assert (answered.status, error_of(answered)) == (403, "NO_RULE")
    assert not fake.checks
    assert [record.levelname for record in caplog.records] == ["WARNING"]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "MISSING_AUTHORIZATION"),
        ({"authorization": ""}, "MISSING_AUTHORIZATION"),
        ({"authorization": "Basic eHg6eHg="}, "MALFORMED_AUTHORIZATION"),
        ({"authorization": "Bearer fg_live_guessed"}, "MALFORMED_KEY"),
    ],
)
def test_without_a_good_key_nobody_comes_in(call: Call, headers: Mapping[str, str], reason: str) -> None:
    """The raw header is the service's to take apart, also where there is none."""
    answered = call("/forms/f1", headers=headers)
    assert (answered.status, error_of(answered)) == (401, reason)
    assert answered.header("www-authenticate") == "Bearer"


def test_a_denial_is_the_policys_to_the_byte(call: Call, fake: FakeFormgate, key: FakeKey) -> None:
    """Status, fields in order and body are those of the verdict; a length follows, as HTTP needs one."""
    fake.revoke(key)
    answered = call("/forms/f1", headers=key.headers)
    denial = fake.client.check(key.secret).http_denial
    assert denial is not None
    assert (answered.status, answered.body) == (denial.status, denial.body)
    assert answered.headers == (*denial.headers, ("content-length", str(len(denial.body))))


def test_head_is_a_get_without_a_body(call: Call, key: FakeKey) -> None:
    """HEAD is decided as its route's GET, and its denial has the same fields and no body."""
    get, head = call("/forms/f2", headers=key.headers), call("/forms/f2", "HEAD", key.headers)
    assert (head.status, head.headers, head.body) == (403, get.headers, b"")
    assert call("/forms/f1", "HEAD", key.headers).status in {200, 405}  # where the framework's route takes HEAD


def test_where_limits_stand_is_said(call: Call, key: FakeKey) -> None:
    """RateLimit and RateLimit-Policy on what is allowed and on what a limit denies, and there Retry-After.

    As in the draft: lists of strings with parameters. A calendar period has no fixed window, and what is unlimited is
    not told.
    """
    policies = '"rate";q=2;w=60, "daily";q=10'
    day = 12 * 60 * 60
    for left in (1, 0):
        allowed = call("/forms/f1", headers=key.headers)
        assert allowed.status == 200
        assert allowed.header("ratelimit-policy") == policies
        assert allowed.header("ratelimit") == f'"rate";r={left};t=60, "daily";r={8 + left};t={day}'
        assert allowed.header("retry-after") is None
    denied = call("/forms/f1", headers=key.headers)
    assert (denied.status, error_of(denied)) == (429, "RATE_LIMITED")
    assert denied.header("ratelimit-policy") == policies
    assert denied.header("ratelimit") == f'"rate";r=0;t=60, "daily";r=8;t={day}'
    assert denied.header("retry-after") == "60"


def test_limits_can_be_kept_to_oneself(make: Make, fake: FakeFormgate, key: FakeKey) -> None:
    """With ``limit_headers=False`` nothing is added to what the application and the policy say."""
    call = make(fake, limit_headers=False)
    statuses = []
    for _ in range(3):
        answered = call("/forms/f1", headers=key.headers)
        statuses.append(answered.status)
        assert answered.header("ratelimit") is answered.header("ratelimit-policy") is None
    assert statuses == [200, 200, 429]


class Broken:
    """A client of which every check ends the same way: an error, or an answer that is none."""

    def __init__(self, outcome: object) -> None:
        self._outcome = outcome

    @property
    def client(self) -> Any:
        """As of a fake."""
        return self

    async_client = client

    def check(self, **asked: Any) -> Any:
        """End that way, for the awaiting and for others."""
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome


class Awaited(Broken):
    """The same for asyncio."""

    async def check(self, **asked: Any) -> Any:
        """End that way."""
        return super().check(**asked)


SECRET = "fg_live_0123456789"
NO_YES = [
    RuntimeError(f"it was {SECRET}"),
    InvalidRequestError(f"not good: {SECRET}"),
    None,
    True,
    "allowed",
    Verdict(allowed=1, reason=Reason.OK, message="", http_status=200),  # type: ignore[arg-type]
    Verdict(allowed=False, reason=None, message="", http_status=200),
    Verdict(allowed=False, reason=Reason.KEY_REVOKED, message="", http_status=200),
]


@pytest.mark.parametrize("outcome", NO_YES, ids=lambda outcome: type(outcome).__name__)
def test_whatever_the_client_does_nothing_reads_as_allowed(
    make: Make, outcome: object, caplog: pytest.LogCaptureFixture
) -> None:
    """An error, nothing, an object that is merely true, a denial without words: 503, and no key in the log."""
    is_async = make.__name__ in {"starlette", "fastapi"}
    call = make((Awaited if is_async else Broken)(outcome))
    with caplog.at_level(logging.DEBUG):
        answered = call("/forms/f1", headers={"authorization": f"Bearer {SECRET}"})
    assert (answered.status, error_of(answered), answered.header("retry-after")) == (503, "UNAVAILABLE", "1")
    assert SECRET not in caplog.text
    if isinstance(outcome, Exception):
        assert type(outcome).__name__ in caplog.text


def test_a_service_that_is_down_lets_nobody_in(call: Call, fake: FakeFormgate, key: FakeKey) -> None:
    """By default a client fails closed, and the answer is 503: the key may be good."""
    fake.down()
    answered = call("/forms/f1", headers=key.headers)
    assert (answered.status, error_of(answered)) == (503, "UNAVAILABLE")
    fake.recover()
    assert call("/forms/f1", headers=key.headers).status == 200


def test_the_answers_of_ones_own(make: Make, fake: FakeFormgate, key: FakeKey) -> None:
    """What no policy words is worded by the application, where it wants to."""
    own = HttpDenial(404, (("content-type", "text/plain"),), b"nothing here")
    call = make(fake, answers=Answers(no_rule=own, bad_path=own, unavailable=own))
    fake.down()
    for target in ("/nowhere", "/forms//f1", "/forms/f1"):
        answered = call(target, headers=key.headers)
        assert (answered.status, answered.body) == (404, b"nothing here")


def test_a_key_in_a_header_of_its_own(make: Make, fake: FakeFormgate, key: FakeKey) -> None:
    """With ``key_header`` the key is that header's value; without it, Authorization counts as ever."""
    call = make(fake, key_header="X-API-Key")
    assert call("/forms/f1", headers={"x-api-key": key.secret, "authorization": "Basic eHg6eHg="}).status == 200
    assert call("/forms/f1", headers=key.headers).status == 200
    assert error_of(call("/forms/f1")) == "MISSING_AUTHORIZATION"
    assert error_of(call("/forms/f1", headers={"x-api-key": "guessed"})) == "MALFORMED_KEY"
    assert error_of(make(fake)("/forms/f1", headers={"x-api-key": key.secret})) == "MISSING_AUTHORIZATION"


def test_two_credentials_are_none() -> None:
    """Two Authorization fields are joined as HTTP reads them, and then not well-formed: no server picks one of them."""
    fake = FakeFormgate()
    good = fake.add_key(grants=[Grant("*", ("*",))])
    call = FRAMEWORKS["starlette"](fake)
    assert isinstance(call, AsgiCall)
    twice = [(b"authorization", good.authorization.encode())] * 2
    answered = AsgiCall(call.app, headers=twice)("/forms/f1")
    assert (answered.status, error_of(answered)) == (401, "MALFORMED_AUTHORIZATION")
    joined = {"authorization": f"{good.authorization},{good.authorization}"}  # as WSGI servers do
    assert error_of(FRAMEWORKS["flask"](fake)("/forms/f1", headers=joined)) == "MALFORMED_AUTHORIZATION"


HOSTILE = [
    "//forms/f1",
    "/forms//f1",
    "/health/../forms/f1",
    "/health/..",
    "/./forms/f1",
    "/forms/.",
    "/forms/%2e%2e/admin",
    "/files/%2E%2E/forms/f1",
    "/files/..%2fforms/f1",
    "/files/%252e%252e/forms/f1",
    "/files/a%255cb",
    "/files\\..\\forms",
    "/files/a%5c..%5cb",
    "/forms/f1%00",
    "/forms/f1%0a",
    "/forms/%ff",
    "/forms/%c0%ae",
    "/forms/a%20b",
    "/forms/f1;x=1",
    "/forms/f%C3%A9",
    "/forms/" + 65 * "x",
    "forms/f1",
    "*",
]


def test_hostile_paths_are_refused_unseen(call: Call, fake: FakeFormgate, key: FakeKey) -> None:
    """What two readers could read differently, or what can not exist, is 400, and nobody is asked."""
    for target in HOSTILE:
        answered = call(target, headers=key.headers)
        assert (answered.status, error_of(answered)) == (400, "BAD_PATH"), target
    assert not fake.checks


def test_case_and_slashes_at_the_end_make_another_path(call: Call, key: FakeKey) -> None:
    """A rule is for its very path; what a framework would send elsewhere has no rule."""
    for target in ("/FORMS/f1", "/Health", "/forms", "/forms/", "/health/", "/forms/f1/", "/health%20"):
        answered = call(target, headers=key.headers)
        assert (answered.status, error_of(answered)) == (403, "NO_RULE"), target


def test_a_slash_at_the_end_is_no_way_around_a_rule(fake: FakeFormgate, key: FakeKey) -> None:
    """Flask may route /admin and /admin/ to the same view, and a wide rule below answers for neither of them."""
    for route in ("/admin", "/admin/"):
        app = Flask(__name__)
        app.url_map.strict_slashes = False
        app.add_url_rule(route, "admin", lambda: "secret")
        rules = [Rule("GET", route, permissions=["forms.delete"]), Open("GET", "/{rest:path}")]
        app.wsgi_app = wsgi.FormgateMiddleware(app.wsgi_app, fake.client, rules)  # type: ignore[method-assign]
        call = WsgiCall(app)
        assert {call(target, headers=key.headers).status for target in ("/admin", "/admin/")} == {403}


@pytest.mark.parametrize("target", ["/forms/f1%2fsubmissions%2f7", "/files/a%2Fb"])
def test_an_encoded_slash_is_what_the_framework_takes_it_for(make: Make, fake: FakeFormgate, target: str) -> None:
    """Where the server tells how a path was written it is refused; elsewhere it is the slash that it is routed by."""
    good = fake.add_key(grants=[Grant("forms/f1/submissions/7", ("submissions.read",))])
    call = make(fake)
    answered = call(target, headers=good.headers)
    if isinstance(call, AsgiCall):
        assert error_of(answered) == "BAD_PATH"
        return
    assert isinstance(call, WsgiCall)
    assert answered.status == 200
    assert "/" in "".join(json.loads(answered.body)["values"].values()) or fake.checks[0].resources[1] == "forms/f1"
    for name in ("RAW_URI", "REQUEST_URI"):
        told = WsgiCall(call.app, **{name: target})
        assert error_of(told(target, headers=good.headers)) == "BAD_PATH"


SLASHES = ["/", "/", "//", ".", "..", "/..", "%2e", "%2F", "%5c", "\\", "%00", "%25", "%252f", ";", "?", "%3f", "%20"]
WORDS = ["é", "%C3%A9", "%ff", "forms", "FORMS", "f1", "f2", "/f2", "export", "health", "/files/", "submissions", "7"]
PIECES = st.sampled_from([*SLASHES, *WORDS])
PLACES = st.tuples(st.integers(0, 24), st.integers(0, 3), PIECES | st.just(""))
"""Where a piece is put into a path, and how much of the path it takes the place of."""


def _target(path: str, changes: list[tuple[int, int, str]]) -> str:
    for at, taken, piece in changes:
        path = path[:at] + piece + path[at + taken :]
    return path


TARGETS = st.builds(
    _target,
    st.sampled_from(["/forms/f1", "/forms/f2/submissions/7", "/forms/export", "/files/a/b", "/health"]),
    st.lists(PLACES, max_size=3),
)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@given(target=TARGETS, method=st.sampled_from(["GET", "GET", "POST", "DELETE", "HEAD", "get", "OPTIONS"]))
def test_no_handler_runs_for_what_was_not_asked(framework: str, target: str, method: str) -> None:
    """Whatever the path: a handler that runs was asked for by just the values that the framework gives it.

    So there is no writing of a path by which the rule that is checked and the route that runs differ.
    """
    fake, key, call = _shared(framework)
    fake.checks.clear()
    answered = call(target, method, key.headers)
    if answered.status != 200 or not answered.body:
        return
    found = json.loads(answered.body)
    expected = {
        "/health": None,
        "/files/{name:path}": None,
        "/forms/export": ("organization",),
        "/forms/{form_id}": ("forms/{form_id}",),
        "/forms/{form_id}/submissions/{number}": ("forms/{form_id}/submissions/{number}", "forms/{form_id}"),
    }[found["route"]]
    if expected is None:
        assert not fake.checks
        return
    (check,) = fake.checks
    assert check.resources == tuple(each.format(**found["values"]) for each in expected)


@cache
def _shared(framework: str) -> tuple[FakeFormgate, FakeKey, Call]:
    """Make an application once for all paths, and a key that may do everything there."""
    fake = FakeFormgate()
    key = fake.add_key(grants=[Grant("*", ("*",)), Grant("organization", ("*",))])
    return fake, key, FRAMEWORKS[framework](fake)


@pytest.mark.parametrize("root", ["/api", "/a/b"])
def test_an_application_that_is_mounted_has_its_own_root(root: str) -> None:
    """Rules are written from the application's root, wherever a server or another application mounts it."""
    fake = FakeFormgate()
    good = fake.add_key(grants=[Grant("forms/f1", ("forms.read",))])
    asgi_call, wsgi_call = FRAMEWORKS["starlette"](fake), FRAMEWORKS["flask"](fake)
    assert isinstance(asgi_call, AsgiCall)
    assert isinstance(wsgi_call, WsgiCall)
    for mounted in (AsgiCall(asgi_call.app, root_path=root), WsgiCall(wsgi_call.app, SCRIPT_NAME=root)):
        assert mounted("/forms/f1", headers=good.headers).status == 200
        assert mounted("/forms/f1").status == 401
    beside = AsgiCall(asgi_call.app, root_path=root, path=root + "x/forms/f1")
    assert beside("/", headers=good.headers).status == 400


ADDRESSES = [
    ("192.0.2.1", "", "192.0.2.1"),
    ("192.0.2.1", "198.51.100.7", "192.0.2.1"),  # not a proxy of ours: what it says is nothing
    ("10.0.0.1", "", "10.0.0.1"),
    ("10.0.0.1", "198.51.100.7", "198.51.100.7"),
    ("10.0.0.1", "203.0.113.9, 198.51.100.7", "198.51.100.7"),  # the first was made up by the second
    ("10.0.0.1", "203.0.113.9,198.51.100.7 , 10.9.9.9", "198.51.100.7"),
    ("10.0.0.1", "10.0.0.2, 10.0.0.3", "10.0.0.2"),
    ("10.0.0.1", "198.51.100.7:4711", "198.51.100.7"),
    ("10.0.0.1", "[2001:db8::1]:4711", "2001:db8::1"),
    ("10.0.0.1", "2001:db8::1", "2001:db8::1"),
    ("10.0.0.1", "198.51.100.7, unknown", ""),
    ("10.0.0.1", "198.51.100.7,", ""),
    ("2001:db8::5", "198.51.100.7", "198.51.100.7"),
    ("::ffff:10.0.0.1", "198.51.100.7", "198.51.100.7"),
    ("", "198.51.100.7", ""),
    ("testclient", "198.51.100.7", ""),
]


def test_the_address_is_the_peers_or_what_trusted_proxies_say(make: Make, fake: FakeFormgate) -> None:
    """X-Forwarded-For is read from its end, through proxies that are trusted; by default none is."""
    key = fake.add_key(grants=[Grant("*", ("*",))])
    trusting, plain = make(fake, trusted_proxies=["10.0.0.0/8", "2001:db8::5"]), make(fake)
    for peer, forwarded, seen in ADDRESSES:
        fake.checks.clear()
        headers = key.headers | ({"x-forwarded-for": forwarded} if forwarded else {})
        assert trusting("/forms/f1", headers=headers, peer=peer).status == 200
        assert plain("/forms/f1", headers=headers, peer=peer).status == 200
        assert [check.source_ip for check in fake.checks] == [seen, peer if peer != "testclient" else ""]


def test_a_proxy_on_a_unix_socket_can_be_trusted(make: Make, fake: FakeFormgate) -> None:
    """It has no address to be known by; ``unix`` names it."""
    key = fake.add_key(grants=[Grant("*", ("*",))], ip_rules=["198.51.100.7"])
    headers = key.headers | {"x-forwarded-for": "198.51.100.7"}
    assert make(fake, trusted_proxies=["unix"])("/forms/f1", headers=headers, peer="").status == 200
    assert error_of(make(fake)("/forms/f1", headers=headers, peer="")) == "IP_NOT_ALLOWED"


def test_resources_that_a_function_makes(make: Make, fake: FakeFormgate) -> None:
    """A rule's function is given the placeholders; what it makes is checked as any resource, and its errors are 503."""

    def paths(values: Mapping[str, str]) -> list[str]:
        folder = {"f1": "folders/finance", "f3": "folders/../all"}[values["form_id"]]
        return [f"{folder}/forms/{values['form_id']}", f"forms/{values['form_id']}"]

    key = fake.add_key(grants=[Grant("folders/finance", ("forms.read",))])
    call = make(fake, [Rule("GET", "/forms/{form_id}", permissions=["forms.read"], resources=paths)])
    statuses = [call(f"/forms/{form}", headers=key.headers).status for form in ("f1", "f2", "f3")]
    assert statuses == [200, 503, 400]


@pytest.mark.parametrize("needed", [{"only_authenticate": True}, {"permissions": ["forms.read"]}, {"by_method": True}])
def test_a_function_that_names_no_resource_lets_nobody_in(make: Make, fake: FakeFormgate, needed: Any) -> None:
    """Without a resource any good key would do; that the path names nothing is no reason for it."""
    key = fake.add_key(grants=[Grant("*", ("*",))])
    call = make(fake, [Rule("GET", "/forms/{form_id}", resources=lambda _: [], **needed)])
    assert error_of(call("/forms/f1", headers=key.headers)) == "BAD_PATH"
    assert not fake.checks


def test_a_method_that_is_too_long_is_a_bad_request(
    make: Make, fake: FakeFormgate, key: FakeKey, caplog: pytest.LogCaptureFixture
) -> None:
    """The service takes 64 characters: more is the caller's mistake, and no operator is called."""
    call = make(fake, [Rule("*", "/forms/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"])])
    assert error_of(call("/forms/f1", "M" * 65, key.headers)) == "BAD_PATH"
    assert not fake.checks
    assert [record for record in caplog.records if record.name.startswith("formgate")] == []
    call("/forms/f1", "M" * 64, key.headers)
    assert [check.http_method for check in fake.checks] == ["M" * 64]


@pytest.mark.parametrize(
    ("method", "needed", "level"),
    [
        ("GET", {"only_authenticate": True}, Level.READ),
        ("POST", {"only_authenticate": True}, Level.WRITE),
        ("DELETE", {"only_authenticate": True}, Level.MANAGE),
        ("STRANGE", {"only_authenticate": True}, Level.MANAGE),
        ("GET", {"only_authenticate": True, "level": "manage"}, Level.MANAGE),
        ("GET", {"permissions": ["forms.read"]}, Level.READ),
        ("DELETE", {"permissions": ["forms.read"]}, Level.MANAGE),
        ("DELETE", {"permissions": ["forms.read"], "level": "read"}, Level.READ),
    ],
)
def test_how_much_a_request_does_is_known_without_the_service(
    make: Make, fake: FakeFormgate, method: str, needed: Any, level: Level
) -> None:
    """The client's fail mode goes by the rule's level, else by the method, also where no method is asked about."""
    make(fake, [Rule("*", "/forms/{form_id}", **needed)])("/forms/f1", method)
    (check,) = fake.checks
    assert level_of(check) is level


@pytest.mark.parametrize(
    ("rule", "permissions", "method", "status"),
    [
        (Rule("*", "/forms/{form_id}", by_method=True), ("forms.read",), "DELETE", 403),
        (Rule("*", "/forms/{form_id}", by_method=True, resources="forms/{form_id}"), ("*",), "DELETE", 200),
        (Rule("*", "/forms/{form_id}", by_method=True, resources="forms/{form_id}"), ("*",), "WEBSOCKET", 403),
        (Rule("*", "/forms/{form_id}", only_authenticate=True), (), "DELETE", 200),
        (Rule("*", "/forms/{form_id}", only_authenticate=True, resources=["sites/s1"]), (), "GET", 403),
    ],
)
def test_rules_without_permissions(
    make: Make, fake: FakeFormgate, rule: Rule, permissions: tuple[str, ...], method: str, status: int
) -> None:
    """By method the policy says what is needed; ``only_authenticate`` needs a good key and no more."""
    key = fake.add_key(grants=[Grant("forms/f1", permissions)] if permissions else [])
    assert make(fake, [rule])("/forms/f1", method, key.headers).status == status


def test_all_of_a_rule_is_asked(make: Make, fake: FakeFormgate) -> None:
    """API group, environment, cost, policy and strictness go to the client as they are written."""
    fake.deny(Reason.PERMISSION_DENIED)
    rule = Rule(
        "GET",
        "/forms/{form_id}",
        by_method=True,
        api_group="v2",
        environment="LIVE",
        cost=5,
        policy="default",
        strict=True,
    )
    make(fake, [rule])("/forms/f1")
    (check,) = fake.checks
    assert (check.api_group, check.environment, check.cost, check.policy) == ("v2", "LIVE", 5, "default")
    assert (check.strict, check.http_method) == (True, "GET")
