"""TLS of the gRPC port, with real certificates: who gets in, who is who, and files that change under calls."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from formgate.v1.accounts_pb2 import (
    CreateAccountRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListAuditEventsRequest,
)
from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, GetKeyRequest
from tests.support.certificates import Authority
from tests.support.client import Client, new_account
from tests.support.command import Result, run_here
from tests.support.server import Server, eventually
from tests.support.workers import SupervisedServer

TRUST = "spiffe://example.org/ns/shop/sa"
_OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


class Place:
    """A server with mutual TLS, and certificates of all kinds to call it with."""

    def __init__(self, folder: Path, kind: type[Server] = Server) -> None:
        self.authority = Authority(folder / "ca")
        self.mounted = folder / "mounted"
        self._versions = 0
        self.files: dict[str, bytes] = {}
        self.mount(identities=identities(), **self.fresh())
        self.server = kind(
            folder,
            *("--tls-cert-file", str(self.mounted / "tls.crt"), "--tls-key-file", str(self.mounted / "tls.key")),
            *("--tls-client-ca-file", str(self.mounted / "ca.crt")),
            *("--tls-identities-file", str(self.mounted / "identities")),
        )

    def fresh(self, name: str = "server", **given: Any) -> dict[str, bytes]:
        """Return the files of a new certificate of the server, and the authority of clients."""
        certificate, key = self.authority.sign(name, **given)
        return {
            "tls.crt": certificate.read_bytes(),
            "tls.key": key.read_bytes(),
            "ca.crt": self.authority.certificate.read_bytes(),
        }

    def mount(self, **files: bytes) -> None:
        """Change files in the way of Kubernetes: a folder of links through ``..data``, which is swapped."""
        self._versions += 1
        self.files |= files
        version = self.mounted / f"..version{self._versions}"
        version.mkdir(parents=True)
        for name, content in self.files.items():
            (version / name).write_bytes(content)
            link = self.mounted / name
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}")
        swapped = self.mounted / "..data_tmp"
        swapped.symlink_to(version.name)
        swapped.rename(self.mounted / "..data")

    def credentials(self, *signed: Path, by: Authority | None = None) -> grpc.ChannelCredentials:
        """Return those of a client that trusts the server, with a certificate and key of its own, or without."""
        certificate, key = (path.read_bytes() for path in signed) if signed else (None, None)
        return grpc.ssl_channel_credentials((by or self.authority).certificate.read_bytes(), key, certificate)

    def client(self, *signed: Path, token: str = "", by: Authority | None = None) -> Client:
        """Return a client on a connection of its own."""
        return Client(self.server.address, token, credentials=self.credentials(*signed, by=by), options=_OWN_CONNECTION)

    def named(self, name: str, *, token: str = "", **given: Any) -> Client:
        """Return a client whose certificate has these names."""
        return self.client(*self.authority.sign(name, hosts=(), **given), token=token)

    @property
    def manager(self) -> Client:
        """A client with the manager's token, whose certificate is nobody's."""
        return self.named("manager", token=self.server.token)

    def handshake(self, newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> tuple[str | None, str]:
        """Shake hands by OpenSSL, speaking no newer TLS than that; return the version and the server's name."""
        context = ssl.create_default_context(cafile=self.authority.certificate)
        context.set_ciphers("ALL:@SECLEVEL=0")  # else OpenSSL itself would refuse what is old
        context.minimum_version, context.maximum_version = ssl.TLSVersion.MINIMUM_SUPPORTED, newest
        context.set_alpn_protocols(["h2"])
        context.load_cert_chain(*self.authority.sign("openssl"))
        host, _, port = self.server.address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), 10) as raw,
            context.wrap_socket(raw, server_hostname=host) as wrapped,
        ):
            shown: Any = wrapped.getpeercert()
            return wrapped.version(), dict(part[0] for part in shown["subject"])["commonName"]


def identities(role: str = "checker") -> bytes:
    """Return an identities file."""
    return f"""
        identity = [
            {{ name = "gateway", spiffe = "{TRUST}/gateway", role = "{role}" }},
            {{ name = "console", dns = "console.shop.svc", role = "manager", account_id = "acme" }},
            {{ name = "other", dns = "other.shop.svc", role = "auditor", policy = "default" }},
        ]
    """.encode()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A place whose files stay as they are."""
    here = Place(tmp_path_factory.mktemp("tls"))
    with here.server:
        yield here


@pytest.fixture(scope="module")
def secret(place: Place) -> str:
    """The secret of a key of account acme."""
    with closing(place.manager) as manager:
        manager(CreateAccountRequest(account_id="acme"))
        secret: str = manager(CreateKeyRequest(account_id="acme")).secret
    return secret


# ------------------------------------------------------------------------------------------------------- who gets in


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_is_spoken(place: Place, version: ssl.TLSVersion) -> None:
    """1.2 and 1.3."""
    assert place.handshake(version) == (f"TLSv1.{version - ssl.TLSVersion.TLSv1}", "server")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1])
def test_older_tls_is_refused(place: Place, version: ssl.TLSVersion) -> None:
    """1.1 and 1.0, by a client that speaks nothing else."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        place.handshake(version)


def stays_out(client: Client) -> str:
    """Assert that a client gets no connection; return why."""
    with closing(client), pytest.raises(grpc.RpcError) as raised:
        client(CheckKeyRequest(key="x"))
    error: Any = raised.value
    assert error.code() is StatusCode.UNAVAILABLE
    return str(error.details())


def test_who_speaks_no_tls_stays_out(place: Place) -> None:
    """No call in clear is ever answered, and a token shown in clear is not looked at."""
    stays_out(Client(place.server.address, place.server.token, options=_OWN_CONNECTION))


def test_who_shows_no_certificate_stays_out(place: Place) -> None:
    """With the best of tokens; health is no exemption."""
    stays_out(place.client(token=place.server.token))
    with grpc.secure_channel(place.server.address, place.credentials(), _OWN_CONNECTION) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError):
            stub.Check(health_pb2.HealthCheckRequest(), timeout=5)


def test_who_shows_a_certificate_that_is_not_good_stays_out(place: Place, tmp_path: Path) -> None:
    """Another authority's of the same name, one that has ended, has not begun, or is for servers only."""
    names: dict[str, Any] = {"hosts": (), "uris": (f"{TRUST}/gateway",)}
    impostor = Authority(tmp_path)
    stays_out(place.client(*impostor.sign("gateway", **names)))
    for days in ((-3, -1), (1, 3)):
        stays_out(place.named("gateway", uris=names["uris"], days=days))
    stays_out(place.named("gateway", uris=names["uris"], usage=ExtendedKeyUsageOID.SERVER_AUTH))
    with closing(place.named("gateway", uris=names["uris"], usage=ExtendedKeyUsageOID.CLIENT_AUTH)) as good:
        assert not good(CheckKeyRequest(key="x")).allowed


def test_a_client_trusts_only_its_authority(place: Place, tmp_path: Path) -> None:
    """Whoever answers in the server's place gets no token."""
    told = stays_out(place.client(*place.authority.sign("client"), token="t", by=Authority(tmp_path)))
    assert "handshake failed" in told


def test_strangers_write_no_log(place: Place) -> None:
    """Of all those above there is no line: who can not get in can not fill a disk."""
    stays_out(Client(place.server.address, options=_OWN_CONNECTION))
    stays_out(place.client())
    assert all(line.startswith("{") for line in place.server.log.splitlines())
    assert "andshake" not in place.server.log


# --------------------------------------------------------------------------------------------------------- who is who


def test_a_spiffe_id_stands_for_a_token(place: Place, secret: str) -> None:
    """Its role is what the identities file says, and no more."""
    with closing(place.named("a", uris=(f"{TRUST}/gateway",))) as gateway:
        assert gateway(CheckKeyRequest(key=secret)).allowed
        refusal = gateway.refusal(GetKeyRequest(key_id="x"))
        assert (refusal.code, refusal.reason) == (StatusCode.PERMISSION_DENIED, "ROLE_NOT_ALLOWED")


def test_a_dns_name_stands_for_a_token(place: Place, secret: str) -> None:
    """Bound to an account it sees that account only, and in the audit trail it stands by its name."""
    with closing(place.named("b", dns=("Console.shop.svc", "unknown"))) as console:
        made = console(CreateKeyRequest(account_id="acme")).key
        assert console(GetKeyRequest(key_id=made.key_id)).key.account_id == "acme"
        (row,) = (
            event
            for event in console(ListAuditEventsRequest(account_id="acme")).audit_events
            if event.target == f"keys/{made.key_id}"
        )
        assert row.token_id == "cert.console"
        with closing(place.manager) as manager:
            others = new_account(manager)
        assert console.refusal(GetAccountRequest(account_id=others)).code is StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"uris": (f"{TRUST}/unknown",)},
        {"uris": (f"{TRUST}/gateway/more",)},
        {"dns": ("gateway",)},
        {"uris": (f"{TRUST}/gateway", "https://example.org/")},
        {"uris": (f"{TRUST}/gateway",), "dns": ("console.shop.svc",)},
        {"dns": ("console.shop.svc", "other.shop.svc")},
    ],
    ids=["no name", "unknown", "longer", "its common name", "two URIs", "two identities", "two DNS identities"],
)
def test_whoever_is_no_identity_is_refused(place: Place, names: dict[str, Any]) -> None:
    """A certificate of the right authority is not enough: it must be one identity's, by its whole name."""
    with closing(place.named("gateway", **names)) as client:
        refusal = client.refusal(CheckKeyRequest(key="x"))
        assert (refusal.code, refusal.reason) == (StatusCode.UNAUTHENTICATED, "UNKNOWN_CLIENT_CERTIFICATE")


@pytest.mark.parametrize("shown", ["Bearer wrong", "Bearer ", "", "Basic x"])
def test_a_token_that_is_shown_decides(place: Place, secret: str, shown: str) -> None:
    """A bad one is not mended by a good certificate; a good one makes the caller, whatever its certificate may do."""
    names: dict[str, Any] = {"uris": (f"{TRUST}/gateway",)}
    with closing(place.named("c", **names)) as gateway:
        refusal = gateway.refusal(CheckKeyRequest(key=secret), ("authorization", shown))
        assert refusal.code is StatusCode.UNAUTHENTICATED
        assert refusal.reason in {"INVALID_SERVICE_TOKEN", "MISSING_SERVICE_TOKEN"}
    with closing(place.named("c", token=place.server.token, **names)) as manager:
        assert manager(ListAccountsRequest()).accounts


def test_health_and_reflection_by_certificate(place: Place) -> None:
    """Health is for all that get in, reflection for identities only."""
    for name, known in (("gateway", True), ("nobody", False)):
        signed = place.authority.sign("d", hosts=(), uris=(f"{TRUST}/{name}",))
        with grpc.secure_channel(place.server.address, place.credentials(*signed), _OWN_CONNECTION) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            assert health.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
            answers = reflection.ServerReflectionInfo(asked, timeout=5)
            if known:
                assert next(answers).list_services_response.service
            else:
                with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                    next(answers)


def test_probes_stay_plain(place: Place) -> None:
    """Kubelets and Prometheus have no certificate."""
    assert get(place.server, "/readyz") == "ok\n"


# ---------------------------------------------------------------------------------------------------- files that change


def test_workers_follow_their_files(tmp_path: Path) -> None:
    """Each by itself; the supervisor tells the end of what they serve."""
    place = Place(tmp_path, SupervisedServer)
    with place.server:
        assert place.handshake()[1] == "server"
        place.mount(**place.fresh("second", days=(-1, 9)))
        eventually(lambda: place.handshake()[1] == "second", 10, "the second certificate")
        eventually(lambda: abs(end_of(place.server) - time.time() - 9 * 86_400) < 60, 10, "its end")


def test_files_change_and_no_call_is_dropped(tmp_path: Path) -> None:
    """Under ceaseless calls, on a lasting connection and on new ones: new certificates, bad ones, other identities."""
    place = Place(tmp_path)
    gateway = place.authority.sign("gateway", hosts=(), uris=(f"{TRUST}/gateway",))
    ended = threading.Event()

    def call(each: int) -> int:
        """Call until the end, with a new connection after ``each`` calls."""
        answered = 0
        while not ended.is_set():
            with closing(place.client(*gateway)) as client:
                for _ in range(each):
                    assert not client(CheckKeyRequest(key="x")).allowed
                    answered += 1
                    if ended.is_set():
                        break
        return answered

    with place.server, ThreadPoolExecutor(3) as threads:
        try:
            calls = [threads.submit(call, each) for each in (5, 5, 1_000_000)]
            assert place.handshake()[1] == "server"
            place.mount(**place.fresh("second", days=(-1, 9)))
            eventually(lambda: place.handshake()[1] == "second", 10, "the second certificate")
            eventually(lambda: abs(end_of(place.server) - time.time() - 9 * 86_400) < 60, 10, "its end")
            bad = identities("auditor").replace(b"role", b"roll", 1)
            place.mount(identities=bad, **place.fresh("third") | {"tls.key": place.files["tls.key"]})
            eventually(lambda: "is not the key of" in place.server.log, 10, "a line of the log")
            eventually(lambda: "identity.0.role: Field required" in place.server.log, 10, "another line")
            assert place.handshake()[1] == "second"
            assert 'formgate_files_refused{files="certificates"} 1.0' in get(place.server, "/metrics")
            place.mount(identities=identities(), **place.fresh("fourth"))
            eventually(lambda: place.handshake()[1] == "fourth", 10, "the fourth certificate")
            eventually(
                lambda: 'formgate_files_refused{files="certificates"} 0.0' in get(place.server, "/metrics"), 10, "0"
            )
        finally:
            ended.set()
        assert all(each.result() > 20 for each in calls)
        assert place.server.log.count("can not be used") == 2
        with closing(place.client(*gateway)) as open_already:
            assert not open_already(CheckKeyRequest(key="x")).allowed
            place.mount(identities=b"")
            eventually(lambda: refused(open_already), 10, "an identity that is taken away")
        other = Authority(tmp_path / "other", "other")
        place.mount(**{"ca.crt": other.certificate.read_bytes()})
        eventually(lambda: not gets_in(place.client(*gateway)), 10, "an authority that is taken away")
        assert gets_in(place.client(*other.sign("gateway", hosts=())))


def refused(client: Client) -> bool:
    """Tell whether a client is no identity's any more."""
    outcome: Any = client.outcome(CheckKeyRequest(key="x"))
    return getattr(outcome, "reason", None) == "UNKNOWN_CLIENT_CERTIFICATE"


def gets_in(client: Client) -> bool:
    """Tell whether a client gets a connection."""
    with closing(client):
        try:
            client(CheckKeyRequest(key="x"))
        except grpc.RpcError as error:
            failed: Any = error
            return failed.code() is not StatusCode.UNAVAILABLE
    return True


def get(server: Server, path: str) -> str:
    """Return what a path of the HTTP listener says."""
    with urllib.request.urlopen(f"http://{server.http}{path}", timeout=10) as answer:
        told: bytes = answer.read()
    return told.decode()


def end_of(server: Server) -> float:
    """Return when the server's certificate ends, as its metrics tell."""
    name = 'formgate_tls_certificate_end_timestamp_seconds{certificate="server"} '
    (line,) = (line for line in get(server, "/metrics").splitlines() if line.startswith(name))
    return float(line.removeprefix(name))


# ---------------------------------------------------------------------------------------------------------- the start


def test_nothing_that_was_to_be_encrypted_is_served_in_clear(tmp_path: Path) -> None:
    """Not beyond loopback either, and though --insecure would allow it."""
    authority = Authority(tmp_path / "ca")
    certificate, key = authority.sign("server")
    files = {"FORMGATE_TLS_CERT_FILE": str(certificate), "FORMGATE_TLS_KEY_FILE": str(key)}
    anywhere = ("--listen", "0.0.0.0:0", "--http", "0.0.0.0:0", "--insecure")
    with Server(tmp_path / "server", *anywhere, environment=files) as server:
        here = server.address.replace("0.0.0.0", "127.0.0.1")
        trusting = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
        with closing(Client(here, server.token, credentials=trusting)) as manager:
            manager(ListAccountsRequest())
        stays_out(Client(here, server.token, options=_OWN_CONNECTION))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"CERT": "gone.pem", "KEY": "gone.key"}, "the certificate CN=gone ended"),
        ({"IDENTITIES": "server.key"}, "server.key:1: the file: is not TOML"),
    ],
    ids=["ended", "no identities"],
)
def test_what_can_not_be_served_is_refused(tmp_path: Path, change: dict[str, str], says: str) -> None:
    """Before anything is made, and never served in clear instead."""
    authority = Authority(tmp_path)
    authority.sign("server")
    authority.sign("other")
    authority.sign("gone", days=(-3, -1))
    (tmp_path / "identities").write_bytes(identities())
    files = {
        "CERT": "server.pem", "KEY": "server.key", "CLIENT_CA": "authority.pem", "IDENTITIES": "identities"
    }  # fmt: skip
    environment = {f"FORMGATE_TLS_{name}_FILE": str(tmp_path / file) for name, file in (files | change).items()}
    server = Server(tmp_path / "server", environment=environment)
    server.spawn()
    try:
        assert server.wait() == 1
    finally:
        server.kill()
    assert says in server.log
    assert "PRIVATE" not in server.log
    assert not server.data.exists()


# --------------------------------------------------------------------------------------------------------- the command


def command(place: Place, *arguments: str, **environment: str | Path) -> Result:
    """Run the command against the server, which it must name as another machine's would."""
    variables = {name: str(value) for name, value in environment.items()}
    return run_here(*arguments, "--address", place.server.address, environment=variables)


def test_the_command_speaks_tls(place: Place, secret: str) -> None:
    """With a certificate that stands for a token, or beside one; and it says so where that does not do."""
    console = place.authority.sign("cli", hosts=(), dns=("console.shop.svc",))
    nobody = place.authority.sign("nobody", hosts=())
    trusts = {"FORMGATE_TLS_CA_FILE": place.authority.certificate}
    shows = {"FORMGATE_TLS_CLIENT_CERT_FILE": console[0], "FORMGATE_TLS_CLIENT_KEY_FILE": console[1]}
    assert command(place, "key", "list", "--account", "acme", "--quiet", **trusts, **shows).out
    no_identity = {"FORMGATE_TLS_CLIENT_CERT_FILE": nobody[0], "FORMGATE_TLS_CLIENT_KEY_FILE": nobody[1]}
    refused = command(place, "account", "list", **trusts, **no_identity)
    assert (refused.code, "the certificate alone does not do" in refused.err) == (1, True)
    beside = command(place, "account", "list", "--quiet", **trusts, **no_identity, FORMGATE_TOKEN=place.server.token)
    assert beside.out.startswith("acme")
    unencrypted = command(place, "account", "list", FORMGATE_TOKEN=place.server.token)
    assert (unencrypted.code, "no server answers" in unencrypted.err) == (3, True)
    assert "--tls-ca-file" in unencrypted.err
    half = command(place, "account", "list", **trusts, FORMGATE_TLS_CLIENT_CERT_FILE=console[0])
    assert (half.code, "go together" in half.err) == (2, True)
