"""A real nginx and a real Caddy ask a real server, with the configurations of docs/gateways."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.keys_pb2 import RevokeKeyRequest
from scripts.envoy import page
from tests.support.client import Client, new_token
from tests.support.configured import free_port
from tests.support.gateways import Gateway, find, make
from tests.support.server import Server
from tests.support.upstream import Upstream

pytest_plugins = ("tests.support.rpc",)
pytestmark = pytest.mark.timeout(300)  # the first one may have to fetch its gateway

FORMGATE, UPSTREAM, INGRESS = 9191, 8080, 8000
HOUR = Duration(seconds=3_600)
READS_F1 = [nouns.Grant(resource="forms/f1", level=nouns.LEVEL_READ)]

# What a distribution's nginx.conf has around the page's configuration, and who is not root must say.
NGINX = """
daemon off;
worker_processes 1;
pid nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{page}
}}
"""


def nginx(folder: Path, formgate: int, upstream: int, token: str) -> Gateway:
    """Return an nginx, to be entered."""
    binary = find("nginx", "nginx", "usr/sbin/nginx")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "formgate-token.conf").write_text(page("nginx.md", "nginx", 0).replace("fgt_…", token), encoding="utf-8")
    (folder / "formgate-protected.conf").write_text(page("nginx.md", "nginx", 2), encoding="utf-8")
    command = [str(binary), "-e", "stderr", "-p", "{folder}", "-c", "{file}"]
    configuration = NGINX.format(page=page("nginx.md", "nginx", 1))
    return Gateway(folder, command, configuration, {FORMGATE: formgate, UPSTREAM: upstream}, INGRESS)


def caddy(folder: Path, formgate: int, upstream: int, token: str) -> Gateway:
    """Return a Caddy, to be entered."""
    binary = find("caddy", "caddy", "usr/bin/caddy")
    command = [str(binary), "run", "--adapter", "caddyfile", "--config", "{file}"]
    environment = {"FORMGATE_TOKEN": token, "HOME": str(folder), "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
    ports = {FORMGATE: formgate, UPSTREAM: upstream}
    return Gateway(folder, command, page("caddy.md", "caddyfile"), ports, INGRESS, environment)


GATEWAYS = {"nginx": nginx, "caddy": caddy}


def port(address: str) -> int:
    """Return the port of HOST:PORT."""
    return int(address.rpartition(":")[2])


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    """What the gateways protect."""
    with Upstream() as upstream:
        yield upstream


@pytest.fixture(scope="module", params=GATEWAYS)
def gateway(
    request: pytest.FixtureRequest,
    rpc_server: Server,
    manager: Client,
    upstream: Upstream,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Gateway]:
    """A gateway with the page's configuration."""
    _, token = new_token(manager, nouns.SERVICE_ROLE_CHECKER)
    start = GATEWAYS[request.param]
    with start(tmp_path_factory.mktemp(request.param), port(rpc_server.auth_http), upstream.port, token) as gateway:
        yield gateway


def test_allowed(gateway: Gateway, manager: Client, account: str) -> None:
    """Who may goes on: the upstream hears whose key it was, and never the key; the client hears where limits stand."""
    made = make(manager, account, created_by="ann", limits=[nouns.Limit(name="rate", amount=7, window=HOUR)])
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
    assert gateway.ask("/healthz").status == 200


def test_spoofed(gateway: Gateway, manager: Client, account: str) -> None:
    """What a client says by our names, or by those that a gateway tells us by, counts for nothing."""
    made = make(manager, account, grants=READS_F1)
    ours = ("x-formgate-key-id", "X-Formgate-Account-Id", "x-formgate-created-by", "x-formgate-token")
    told = (("x-forwarded-method", "GET"), ("x-forwarded-uri", "/v1/forms/f1"), ("x-real-ip", "192.0.2.1"))
    seen = gateway.ask("/v1/forms/f1", made.secret, *((name, "evil") for name in ours), *told).seen
    assert "evil" not in json.dumps(seen)
    assert seen["headers"]["x-formgate-key-id"] == made.key.key_id
    assert not seen["headers"].get("x-formgate-created-by")
    assert "ratelimit" not in seen["headers"]
    alike = ("X_Formgate_Account_Id", "x-formgate_account-id", "X_Formgate-Account_Id")
    named = ("connection", "close, X-Formgate-Key-Id, x-formgate-ACCOUNT-id")
    seen = gateway.ask("/v1/forms/f1", made.secret, *((name, "evil") for name in alike), named).seen
    assert "evil" not in json.dumps(seen)
    assert seen["headers"]["x-formgate-key-id"] == made.key.key_id
    assert seen["headers"]["x-formgate-account-id"] == account
    assert gateway.ask("/v1/forms/f1", made.secret, *told, method="POST").status == 403
    assert gateway.ask("/v1/forms/f2", made.secret, *told).status == 403
    there = make(manager, account, ip_rules=["192.0.2.1"]).secret
    assert gateway.ask("/v1/me", there, *told).status == 403
    here = make(manager, account, ip_rules=["127.0.0.1"]).secret
    assert gateway.ask("/v1/me", here, *told).status == 200


def test_key_in_a_header(gateway: Gateway, manager: Client, account: str) -> None:
    """A route may have the key in a header of its own, which is not forwarded either, and its own price."""
    secret = make(manager, account, limits=[nouns.Limit(name="rate", amount=15, window=HOUR)]).secret
    answer = gateway.ask("/v1/export", "", ("x-api-key", secret))
    assert secret not in answer.seen["headers"].values()
    assert answer.headers["ratelimit"].startswith('"rate";r=5;')
    assert gateway.ask("/v1/export", secret).status == 401
    assert gateway.ask("/v1/export", "", ("x-api-key", secret)).status == 429


@pytest.mark.parametrize(
    ("path", "reason", "status"),
    [
        ("/v1/me", "MISSING_AUTHORIZATION", 401),
        ("/v1/me", "KEY_REVOKED", 401),
        ("/v1/forms/f1/submissions", "PERMISSION_DENIED", 403),
        ("/v1/forms/f2", "RESOURCE_NOT_ALLOWED", 403),
        ("/v1/me", "RATE_LIMITED", 429),
    ],
)
def test_denied(gateway: Gateway, manager: Client, account: str, path: str, reason: str, status: int) -> None:
    """A denial is what the policy words: its status, headers and body; nothing reaches the upstream."""
    limits: Sequence[nouns.Limit] = [nouns.Limit(name="rate", amount=0, window=HOUR)] if status == 429 else []
    made = make(manager, account, grants=READS_F1, limits=limits)
    if reason == "KEY_REVOKED":
        manager(RevokeKeyRequest(key_id=made.key.key_id))
    answer = gateway.ask(path, "" if reason == "MISSING_AUTHORIZATION" else made.secret)
    assert (answer.status, json.loads(answer.body)["error"]["reason"]) == (status, reason)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None)
    if status == 429:
        assert answer.headers["ratelimit"].startswith('"rate";r=0')


def test_over_the_limit(gateway: Gateway, manager: Client, account: str) -> None:
    """The request that no longer fits gets 429, with when to come back and where the limits stand."""
    secret = make(manager, account, limits=[nouns.Limit(name="rate", amount=2, window=HOUR)]).secret
    assert [gateway.ask("/v1/me", secret).status for _ in range(3)] == [200, 200, 429]
    headers = gateway.ask("/v1/me", secret).headers
    assert 3_500 < int(headers["retry-after"]) <= 3_661
    assert headers["ratelimit-policy"] == '"rate";q=2;w=3600'


def test_paths(gateway: Gateway, manager: Client, account: str) -> None:
    """A path that could be read in two ways is refused, on every route; nobody gets at another form by it."""
    secret = make(manager, account, grants=READS_F1).secret
    assert gateway.ask("/v1/forms/f1", secret).status == 200
    assert gateway.ask("/v1/forms/f1/files/%20a%2Cb", secret).status == 200
    for path in (
        "/v1/forms/f1/../f2",
        "/v1/forms//f2",
        "/v1/forms/%66%31",
        "/v1/forms/f1%2f..%2ff2",
        "/v1/forms/f1%5c..%5cf2",
        "/v1/forms/f1/..;/f2",
        "/v1/forms/f1/%252e%252e/f2",
        "/v1/forms/f2/../../me",
        "/v1/forms/x/..%2f..%2fme",
        "/v1/forms/",
        "//v1/forms/f2",
    ):
        assert gateway.ask(path, secret).status in {400, 404}, path


def test_a_route_that_is_not_there(gateway: Gateway, manager: Client, account: str) -> None:
    """What no route is made for is not reached, whoever asks; nor are the gateway's own questions."""
    secret = make(manager, account).secret
    for path in ("/anything", "/", "/_formgate/check", "/_formgate/check?only=authenticate"):
        assert gateway.ask(path, secret).status in {404, 503}, path


def test_a_body(gateway: Gateway, manager: Client, account: str) -> None:
    """A request's body goes to the upstream, and not with the question."""
    secret = make(manager, account).secret
    answer = gateway.ask("/v1/forms/f1", secret, ("content-length", "0"), method="PUT")
    assert answer.seen["method"] == "PUT"
    body = b"a=1"
    head = f"POST /v1/forms/f1 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\ncontent-length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), 10) as connection:
        connection.sendall(head.encode() + b"connection: close\r\n\r\n" + body)
        got = b"".join(iter(lambda: connection.recv(65_536), b""))
    assert got.startswith(b"HTTP/1.1 200"), got


@pytest.mark.parametrize("name", GATEWAYS)
def test_closed(
    name: str, manager: Client, rpc_server: Server, account: str, upstream: Upstream, tmp_path: Path
) -> None:
    """A gateway whose Formgate is away, or refuses its token, lets nobody through but where it asks nobody."""
    secret = make(manager, account).secret
    _, auditor = new_token(manager, nouns.SERVICE_ROLE_AUDITOR)
    there = port(rpc_server.auth_http)
    ways = {"away": (free_port(), rpc_server.token), "unknown": (there, "fgt_none"), "auditor": (there, auditor)}
    for way, (formgate, token) in ways.items():
        with GATEWAYS[name](tmp_path / way, formgate, upstream.port, token) as gateway:
            assert gateway.ask("/v1/me", secret).status in {500, 502, 503}, way
            assert gateway.ask("/healthz").status == 200, way
