from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest

from formgate.common import Common
from formgate.options import Connection, Tls, connection
from formgate.verdict import Source
from tests.support.callers import KINDS, YES, Caller, scripted
from tests.support.certificates import Authority


def connected(environment: dict[str, str] | None = None, **given: Any) -> Connection:
    """Return what comes of arguments and an environment."""
    return connection(**given, environment=environment or {})


@pytest.mark.parametrize(
    ("address", "target"),
    [
        (None, "dns:///127.0.0.1:50051"),
        ("formgate:50051", "dns:///formgate:50051"),
        ("[::1]:6000", "dns:///[::1]:6000"),
        (["10.0.0.1:1", "10.0.0.2:2"], "ipv4:10.0.0.1:1,10.0.0.2:2"),
        (["[fd00::1]:1", "[fd00::2]:2"], "ipv6:[fd00::1]:1,[fd00::2]:2"),
        (["10.0.0.1:1", "[fd00::2]:2"], "ipv6:[::ffff:10.0.0.1]:1,[fd00::2]:2"),
        (["localhost:1", "127.0.0.1:2"], "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("unix:/run/formgate.sock", "unix:/run/formgate.sock"),
        ("dns:///formgate:50051", "dns:///formgate:50051"),
        ("10.0.0.1:1, 10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("ipv4:10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
    ],
    ids=str,
)
def test_addresses(address: Any, target: str) -> None:
    """One address may be a name that stands for several; several are IP addresses."""
    assert connected(address=address).target == target


@pytest.mark.parametrize(
    "address",
    [
        *("formgate", ":50051", "formgate:", "h:0", "h:65536", "h:x", ["a:1", "b:2"], [""]),
        *("host1:1,host2:1", "10.0.0.1:1,", "https://host:443", "http://10.0.0.1:1", "host/path:1", "a b:1", "a:b:1"),
    ],
    ids=str,
)
def test_what_is_no_address(address: Any) -> None:
    """Refused at once, not at the first check."""
    with pytest.raises(ValueError, match=r"HOST:PORT|IP addresses"):
        connected(address=address)


def test_what_is_not_given_comes_from_the_environment(tmp_path: Path) -> None:
    """Address, token, its file, TLS; an argument wins."""
    (tmp_path / "token").write_text(" fgt_file\n")
    environment = {"FORMGATE_ADDRESS": "127.0.0.1:1, 127.0.0.1:2", "FORMGATE_TOKEN_FILE": str(tmp_path / "token")}
    made = connected(environment)
    assert (made.target, made.token) == ("ipv4:127.0.0.1:1,127.0.0.1:2", "fgt_file")
    assert connected(environment | {"FORMGATE_TOKEN": "fgt_env"}).token == "fgt_env"
    given = connected(environment, address="127.0.0.1:3", token="fgt_given")
    assert (given.target, given.token) == ("dns:///127.0.0.1:3", "fgt_given")
    assert connected({"FORMGATE_TLS": "1"}).tls == Tls()
    files = {
        "FORMGATE_TLS_CA_FILE": str(tmp_path / "ca"),
        "FORMGATE_TLS_CLIENT_CERT_FILE": str(tmp_path / "cert"),
        "FORMGATE_TLS_CLIENT_KEY_FILE": str(tmp_path / "key"),
    }
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(name)
    assert connected(files).tls == Tls(b"ca", b"cert", b"key")
    assert connected(files, tls=False).tls is None


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1:50051",
        "formgate:50051",
        "localhost.example:1",
        "xds:///formgate",
        ["127.0.0.1:1", "10.0.0.1:1"],
        "dns://8.8.8.8/localhost:1",
    ],
    ids=str,
)
def test_a_token_does_not_leave_the_machine_in_clear(address: Any) -> None:
    """Refused without TLS, unless told; and the message shows no token."""
    with pytest.raises(ValueError, match="in clear") as caught:
        connected(address=address, token="fgt_secret")
    assert "fgt_secret" not in str(caught.value)
    assert connected(address=address, token="fgt_secret", tls=Tls()).token
    assert connected(address=address, token="fgt_secret", insecure=True).token
    assert connected({"FORMGATE_INSECURE": "true"}, address=address, token="fgt_secret").token
    assert not connected(address=address).token
    with pytest.raises(ValueError, match="in clear"):
        connected({"FORMGATE_INSECURE": "1"}, address=address, token="fgt_secret", insecure=False)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.9.1:1", "[::1]:1", "localhost:1", "unix:/run/f.sock"])
def test_it_may_go_in_clear_within_the_machine(address: str) -> None:
    """Loopback and sockets of the file system."""
    assert connected(address=address, token="fgt_secret").token == "fgt_secret"


@pytest.mark.parametrize("token", ["a b", "a\nb", "tökén"])
def test_what_is_no_token(token: str) -> None:
    """A header that could not be sent is refused, and not shown."""
    with pytest.raises(ValueError, match="token") as caught:
        connected(token=token)
    assert token not in str(caught.value)


@pytest.mark.parametrize("options", [{"timeout": 0}, {"timeout": -1}, {"timeout": float("nan")}, {"attempts": 0}])
def test_options_that_make_no_sense(options: Any) -> None:
    """Refused when the client is made."""
    with pytest.raises(ValueError, match="must be"):
        Common(None, None, options)


@pytest.mark.parametrize("kind", KINDS)
def test_encrypted_and_both_sides_proven(kind: str, tmp_path: Path) -> None:
    """Over TLS with the authority's certificate and one's own; without either there is no answer, and no yes."""
    authority, other = Authority(tmp_path / "ours"), Authority(tmp_path / "others", "others")
    cert, key = authority.sign("client")
    server_cert, server_key = authority.sign("server")
    credentials = grpc.ssl_server_credentials(
        [(server_key.read_bytes(), server_cert.read_bytes())],
        root_certificates=authority.certificate.read_bytes(),
        require_client_auth=True,
    )
    with scripted(credentials) as server:
        server.check = lambda _request, context: (
            YES.SerializeToString() if dict(context.invocation_metadata())["authorization"] == "Bearer fgt_t" else b""
        )

        def answered(tls: Tls) -> bool:
            with Caller(kind, server.address, "fgt_t", tls=tls, timeout=2, attempts=1) as caller:
                return bool(caller.check("k"))

        assert answered(Tls(authority.certificate, cert, key))
        assert answered(Tls(authority.certificate.read_bytes(), cert.read_bytes(), key.read_bytes()))
        assert not answered(Tls(other.certificate, cert, key))
        assert not answered(Tls(authority.certificate, cert, key, server_name="other.example"))
        assert not answered(Tls(authority.certificate))


def test_half_a_certificate() -> None:
    """A certificate without its key is found before anything connects."""
    with pytest.raises(ValueError, match="both"):
        Common(None, None, {"tls": Tls(cert=b"c")})


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_is_missing_is_found_when_the_client_is_made(kind: str, tmp_path: Path) -> None:
    """And one that goes later is read no more: no check raises by it."""
    ca = tmp_path / "ca"
    with pytest.raises(FileNotFoundError):
        Caller(kind, "127.0.0.1:1", tls=Tls(ca))
    ca.write_bytes(Authority(tmp_path / "ours").certificate.read_bytes())
    with Caller(kind, "127.0.0.1:1", tls=Tls(ca), timeout=0.1) as caller:
        ca.unlink()
        assert caller.check("k").source is Source.FALLBACK
