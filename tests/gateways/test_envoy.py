"""A real Envoy asks a real server, with the configuration of docs/gateways/envoy.md."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from textwrap import indent
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from formgate.rules.reason import Reason
from formgate.rules.wording import STATUSES
from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import UpdateAccountRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, DisableKeyRequest, RevokeKeyRequest
from scripts.envoy import page
from tests.support.client import Client, new_account, new_token
from tests.support.envoy import Envoy
from tests.support.server import Server, eventually
from tests.support.upstream import Answer, Upstream, ask

pytest_plugins = ("tests.support.rpc",)
pytestmark = pytest.mark.timeout(400)  # the first one may have to fetch Envoy

FORMGATE, UPSTREAM, INGRESS = 50051, 8080, 10000
HOUR = Duration(seconds=3_600)
DOMAINS = '              domains: ["*"]\n'
FIRST_ROUTE = "              # Open to everybody: says so.\n"


def route(path: str, **extensions: str) -> str:
    """Return one more route that says what it needs."""
    return f"""\
              - match: {{path: {path}}}
                route: {{cluster: upstream}}
                typed_per_filter_config:
                  envoy.filters.http.ext_authz:
                    "@type": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute
                    check_settings: {{context_extensions: {json.dumps(extensions)}}}
"""


ROUTES = {
    "/test-keys": {"only": "authenticate", "environment": "test"},
    "/billing": {"only": "authenticate", "api_group": "billing"},
    "/second": {"only": "authenticate", "policy": "second"},
    "/mistyped": {"permision": "forms.read"},
    "/by-query": {"only": "authenticate", "key": "query:apiKey,authorization"},
}


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """What Envoy protects."""
    with Upstream() as upstream:
        yield upstream


class Gateway(NamedTuple):
    """Envoy, and the token that it shows."""

    envoy: Envoy
    token: str

    def ask(self, path: str, secret: str = "", *headers: tuple[str, str], method: str = "GET") -> Answer:
        """Send a request with a key."""
        shown = (("authorization", f"Bearer {secret}"),) if secret else ()
        return ask(self.envoy.port, path, (*shown, *headers), method)


@pytest.fixture(scope="module")
def gateway(
    rpc_server: Server, manager: Client, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    """Envoy with the page's configuration, and a few routes more."""
    _, token = new_token(manager, nouns.SERVICE_ROLE_CHECKER)
    more = "".join(route(path, **extensions) for path, extensions in ROUTES.items())
    configuration = page("envoy.md", "yaml").replace(FIRST_ROUTE, more + FIRST_ROUTE)
    ports = {FORMGATE: int(rpc_server.address.rpartition(":")[2]), UPSTREAM: upstream.port}
    folder = tmp_path_factory.mktemp("envoy")
    with Envoy(folder, configuration, ports, INGRESS, {"FORMGATE_TOKEN": token}) as envoy:
        yield Gateway(envoy, token)


def make(manager: Client, account: str, **fields: Any) -> Any:
    """Make a key for all forms, unless told otherwise."""
    grants = [nouns.Grant(resource="*", level=nouns.LEVEL_MANAGE, permissions=["*"])]
    return manager(CreateKeyRequest(account_id=account, **{"grants": grants, **fields}))


def test_allowed(gateway: Gateway, manager: Client, account: str) -> None:
    """Who may goes on: the upstream hears whose key it was, and never the key; the client hears where limits stand."""
    limits = [nouns.Limit(name="rate", amount=7, window=HOUR)]
    made = make(manager, account, created_by="ann", limits=limits)
    answer = gateway.ask("/v1/forms/f1/submissions?page=2", made.secret, method="POST")
    seen = answer.seen
    assert (seen["method"], seen["path"]) == ("POST", "/v1/forms/f1/submissions?page=2")
    told = {name: value for name, value in seen["headers"].items() if name.startswith("x-formgate-")}
    assert told == {
        "x-formgate-key-id": made.key.key_id,
        "x-formgate-account-id": account,
        "x-formgate-environment": "live",
        "x-formgate-created-by": "ann",
    }
    assert made.secret not in answer.body.decode()
    assert answer.headers["ratelimit-policy"] == '"rate";q=7;w=3600'
    assert answer.headers["ratelimit"].startswith('"rate";r=6;t=36')


def test_spoofed(gateway: Gateway, manager: Client, account: str) -> None:
    """Headers by our names that a client sends never reach the upstream, those that we have no value for included."""
    made = make(manager, account)
    names = ("x-formgate-key-id", "X-Formgate-Account-Id", "x-formgate-created-by", "x-formgate-anything")
    seen = gateway.ask("/v1/me", made.secret, *((name, "evil") for name in names)).seen
    assert "evil" not in json.dumps(seen)
    assert seen["headers"]["x-formgate-key-id"] == made.key.key_id
    assert "x-formgate-created-by" not in seen["headers"]
    assert gateway.ask("/v1/me", made.secret, ("x_formgate_key_id", "evil")).status == 400


def test_key_in_a_header(gateway: Gateway, manager: Client, account: str) -> None:
    """A route may have the key in a header of its own, which is not forwarded either, and its own price."""
    limits = [nouns.Limit(name="rate", amount=15, window=HOUR)]
    secret = make(manager, account, limits=limits).secret
    answer = gateway.ask("/v1/export", "", ("x-api-key", secret), ("authorization", "Basic eDp5"))
    assert secret not in answer.body.decode()
    assert answer.seen["headers"]["authorization"] == "Basic eDp5"
    assert answer.headers["ratelimit"].startswith('"rate";r=5;')
    assert gateway.ask("/v1/export", secret).status == 401
    assert gateway.ask("/v1/export", "", ("x-api-key", secret)).status == 429


def test_key_in_the_query(gateway: Gateway, manager: Client, account: str) -> None:
    """Only where a route says so is a key taken from the query, and out of it."""
    secret = make(manager, account).secret
    answer = gateway.ask(f"/by-query?a=1&apiKey={secret}&b=2")
    assert answer.seen["path"] == "/by-query?a=1&b=2"
    assert gateway.ask(f"/v1/me?apiKey={secret}").status == 401
    assert gateway.ask(f"/by-query?apiKey={secret}&apiKey={secret}").status == 401


def _revoked(manager: Client, account: str) -> tuple[str, str]:
    made = make(manager, account)
    manager(RevokeKeyRequest(key_id=made.key.key_id))
    return "/v1/me", made.secret


def _disabled(manager: Client, account: str) -> tuple[str, str]:
    made = make(manager, account)
    manager(DisableKeyRequest(key_id=made.key.key_id))
    return "/v1/me", made.secret


def _expired(manager: Client, account: str) -> tuple[str, str]:
    return "/v1/me", make(manager, account, ttl=Duration(nanos=1_000_000)).secret


def _suspended(manager: Client, account: str) -> tuple[str, str]:
    made = make(manager, account)
    suspended = nouns.Account(account_id=account, state=nouns.ACCOUNT_STATE_SUSPENDED)
    manager(UpdateAccountRequest(account=suspended, update_mask=FieldMask(paths=["state"])))
    return "/v1/me", made.secret


def _limited(**limit: Any) -> Any:
    def make_it(manager: Client, account: str) -> tuple[str, str]:
        return "/v1/me", make(manager, account, limits=[nouns.Limit(name="used-up", amount=0, **limit)]).secret

    return make_it


def _other(path: str, **fields: Any) -> Any:
    def make_it(manager: Client, account: str) -> tuple[str, str]:
        return path, make(manager, account, **fields).secret

    return make_it


READS_F1 = [nouns.Grant(resource="forms/f1", level=nouns.LEVEL_READ)]
DENIALS = {
    "MISSING_AUTHORIZATION": lambda *_: ("/v1/me", ""),
    "MALFORMED_AUTHORIZATION": lambda *_: ("/v1/me", "two words"),
    "MALFORMED_KEY": lambda *_: ("/v1/me", "fg_live_nonsense"),
    "KEY_NOT_FOUND": _other("/second"),
    "KEY_REVOKED": _revoked,
    "KEY_DISABLED": _disabled,
    "KEY_EXPIRED": _expired,
    "ACCOUNT_SUSPENDED": _suspended,
    "ENVIRONMENT_MISMATCH": _other("/test-keys"),
    "IP_NOT_ALLOWED": _other("/v1/me", ip_rules=["192.0.2.0/24"]),
    "API_GROUP_NOT_ALLOWED": _other("/billing", api_groups=["forms"]),
    "PERMISSION_DENIED": _other("/v1/forms/f1/submissions", grants=READS_F1),
    "RESOURCE_NOT_ALLOWED": _other("/v1/forms/f2", grants=READS_F1),
    "RATE_LIMITED": _limited(window=HOUR),
    "QUOTA_EXCEEDED": _limited(calendar=nouns.CALENDAR_DAY),
    "CREDITS_EXHAUSTED": _limited(lifetime=True),
}


@pytest.mark.parametrize("reason", DENIALS)
def test_denied(gateway: Gateway, manager: Client, account: str, reason: str) -> None:
    """Each denial is what the policy words: its status, headers and body; nothing reaches the upstream."""
    path, secret = DENIALS[reason](manager, account)
    answer = gateway.ask(path, secret)
    assert json.loads(answer.body)["error"]["reason"] == reason
    assert answer.status == STATUSES[Reason[reason]]
    assert answer.headers["content-type"] == "application/json"
    if answer.status == 401:
        assert answer.headers["www-authenticate"] == "Bearer"
    if answer.status == 429:
        assert answer.headers["ratelimit"].startswith('"used-up";r=0')
    if reason == "KEY_NOT_FOUND":
        assert json.loads(answer.body)["error"]["message"] == "Second knows no such key."


def test_over_the_limit(gateway: Gateway, manager: Client, account: str) -> None:
    """The request that no longer fits gets 429, with when to come back and where the limits stand."""
    secret = make(manager, account, limits=[nouns.Limit(name="rate", amount=2, window=HOUR)]).secret
    assert [gateway.ask("/v1/me", secret).status for _ in range(3)] == [200, 200, 429]
    headers = gateway.ask("/v1/me", secret).headers
    assert 3_500 < int(headers["retry-after"]) <= 3_661
    assert headers["ratelimit-policy"] == '"rate";q=2;w=3600'
    assert headers["ratelimit"].startswith('"rate";r=0;t=3')


def test_paths(gateway: Gateway, manager: Client, account: str) -> None:
    """The form that is decided about is the one that the upstream hears of; what could be two is refused."""
    reads_f1 = [nouns.Grant(resource="forms/f1", level=nouns.LEVEL_READ)]
    secret = make(manager, account, grants=reads_f1).secret
    assert gateway.ask("/v1/forms/f1", secret).status == 200
    assert gateway.ask("/v1//forms/x/../f%31", secret).seen["path"] == "/v1/forms/f1"
    for path in ("/v1/forms/f1/../f2", "/v1/forms/f1/..;/f2", "/v1/forms//f2", "/v1/forms/%66%32", "/v1/forms/f2"):
        assert gateway.ask(path, secret).status == 403, path
    for path in (
        "/v1/forms/f1%2f..%2ff2",
        "/v1/forms/f1%5c..%5cf2",
        "/v1/forms/f1;/x",
        "/v1/forms/f1/%252e%252e/f2",
        "/v1/forms/f1/%2e%2e%2ff2",
        "/v1/forms/",
        "/v1/forms/f1%20",
    ):
        assert gateway.ask(path, secret).status == 400, path


def test_a_route_that_says_nothing(gateway: Gateway, manager: Client, account: str) -> None:
    """A route without a requirement, or with a misspelt one, lets nobody through; a public one says that it is."""
    secret = make(manager, account).secret
    assert gateway.ask("/anything", secret).status == 503
    assert gateway.ask("/mistyped", secret).status == 503
    assert gateway.ask("/healthz").status == 200


def test_the_address(
    rpc_server: Server, manager: Client, account: str, upstream: Upstream, gateway: Gateway, tmp_path_factory: Any
) -> None:
    """Address rules see the connection's address, whatever a client writes into X-Forwarded-For, or a trusted hop's."""
    here = make(manager, account, ip_rules=["127.0.0.1"]).secret
    there = make(manager, account, ip_rules=["203.0.113.7"]).secret
    spoofed = ("x-forwarded-for", "203.0.113.7")
    assert gateway.ask("/v1/me", here, spoofed).status == 200
    assert gateway.ask("/v1/me", there, spoofed).status == 403
    trusting = page("envoy.md", "yaml").replace("xff_num_trusted_hops: 0", "xff_num_trusted_hops: 1")
    configuration = trusting.replace(DOMAINS, DOMAINS + indent(page("envoy.md", "yaml", 1), " " * 14))
    ports = {FORMGATE: int(rpc_server.address.rpartition(":")[2]), UPSTREAM: upstream.port}
    folder = tmp_path_factory.mktemp("envoy")
    with Envoy(folder, configuration, ports, INGRESS, {"FORMGATE_TOKEN": gateway.token}) as envoy:
        behind = Gateway(envoy, gateway.token)
        assert behind.ask("/v1/me", there, ("x-forwarded-for", "192.0.2.1, 203.0.113.7")).status == 200
        assert behind.ask("/v1/me", there, ("x-forwarded-for", "203.0.113.7, 192.0.2.1")).status == 403


@pytest.mark.parametrize("token", ["", "fgt_nonsense", "auditor"])
def test_who_is_no_checker(
    rpc_server: Server,
    manager: Client,
    account: str,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
    token: str,
) -> None:
    """An Envoy without a token, with an unknown one or with one of another role lets nobody through."""
    if token == "auditor":
        _, token = new_token(manager, nouns.SERVICE_ROLE_AUDITOR)
    secret = make(manager, account).secret
    ports = {FORMGATE: int(rpc_server.address.rpartition(":")[2]), UPSTREAM: upstream.port}
    folder = tmp_path_factory.mktemp("envoy")
    with Envoy(folder, page("envoy.md", "yaml"), ports, INGRESS, {"FORMGATE_TOKEN": token}) as envoy:
        assert ask(envoy.port, "/v1/me", [("authorization", f"Bearer {secret}")]).status == 503
        assert ask(envoy.port, "/healthz").status == 200


def test_the_service_is_down(tmp_path: Any, upstream: Upstream) -> None:
    """While Formgate is frozen or gone nobody gets in; once it goes on they do."""
    with Server(tmp_path / "server") as server:
        manager = Client(server.address, server.token)
        secret = make(manager, new_account(manager)).secret
        manager.close()
        port = int(server.address.rpartition(":")[2])
        ports = {FORMGATE: port, UPSTREAM: upstream.port}
        with Envoy(tmp_path, page("envoy.md", "yaml"), ports, INGRESS, {"FORMGATE_TOKEN": server.token}) as envoy:
            gateway = Gateway(envoy, server.token)
            assert gateway.ask("/v1/me", secret).status == 200
            os.killpg(server.process.pid, signal.SIGSTOP)
            assert gateway.ask("/v1/me", secret).status == 503
            os.killpg(server.process.pid, signal.SIGCONT)
            eventually(lambda: gateway.ask("/v1/me", secret).status == 200, 10, "a way in")
            server.kill()
            assert [gateway.ask("/v1/me", secret).status for _ in range(3)] == [503] * 3


def test_a_grpc_upstream(gateway: Gateway, manager: Client, account: str) -> None:
    """A caller of gRPC hears of a denial in its own way, with the policy's words as the message."""
    used_up = make(manager, account, limits=[nouns.Limit(name="rate", amount=0, window=HOUR)]).secret
    elsewhere = make(manager, account, ip_rules=["192.0.2.1"]).secret
    told = {}
    with grpc.insecure_channel(f"127.0.0.1:{gateway.envoy.port}") as channel:
        for name, secret in {"none": "", "elsewhere": elsewhere, "used up": used_up}.items():
            metadata = (("authorization", f"Bearer {secret}"),) if secret else ()
            call: Any = channel.unary_unary("/v1/me")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", metadata=metadata, timeout=5)
            error: Any = refused.value
            told[name] = (error.code(), json.loads(error.details())["error"]["reason"])
    assert told == {
        "none": (grpc.StatusCode.UNAUTHENTICATED, "MISSING_AUTHORIZATION"),
        "elsewhere": (grpc.StatusCode.PERMISSION_DENIED, "IP_NOT_ALLOWED"),
        "used up": (grpc.StatusCode.UNAVAILABLE, "RATE_LIMITED"),
    }
