"""What certificates, keys and authorities are served."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from formgate_server.wire import tls
from formgate_server.wire.followed import UnfitFileError
from formgate_server.wire.tls import Certificates, certificates
from tests.support.certificates import Authority

DAY = 86_400


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Who signs."""
    return Authority(tmp_path_factory.mktemp("authority"))


def served(*paths: Path, now: float | None = None) -> Certificates:
    """Return what would be served of these files."""
    return certificates(paths, [path.read_bytes() for path in paths], time.time() if now is None else now)


def refused(*paths: Path, now: float | None = None) -> str:
    """Return why nothing would be; that may not tell what is in a file."""
    with pytest.raises(UnfitFileError) as raised:
        served(*paths, now=now)
    told = str(raised.value)
    for path in paths:
        assert not any(line in told for line in path.read_text().splitlines() if line)
    return told.replace(f"{paths[0].parent}/", "")


def test_a_certificate_ends_with_the_first_of_its_chain(authority: Authority, tmp_path: Path) -> None:
    """And authorities with the last of them, for one that was replaced may stay in the file until it has ended."""
    certificate, key = authority.sign("long", days=(-1, 9))
    short, _ = authority.sign("short", days=(-1, 3))
    old, _ = authority.sign("old", days=(-5, -1))
    chain, authorities = tmp_path / "chain.pem", tmp_path / "authorities.pem"
    chain.write_bytes(certificate.read_bytes() + short.read_bytes())
    authorities.write_bytes(old.read_bytes() + authority.certificate.read_bytes())
    found = served(chain, key, authorities)
    assert found.end == pytest.approx(time.time() + 3 * DAY, abs=60)
    assert found.client_ca_end == pytest.approx(time.time() + DAY, abs=60)
    assert found.lifetime == pytest.approx(4 * DAY, abs=60)
    assert found.client_ca_lifetime == pytest.approx(2 * DAY, abs=60)
    assert served(certificate, key).client_ca_end is None


def test_what_does_not_fit_together_is_refused(authority: Authority, tmp_path: Path) -> None:
    """By name, and no word of what is in them: a key may stand where the certificate should."""
    certificate, key = authority.sign("one")
    other, other_key = authority.sign("other")
    assert refused(certificate, other_key) == "other.key: is not the key of the first certificate in one.pem"
    assert refused(key, key) == "one.key: holds no certificates, PEM, or one that is broken"
    assert refused(certificate, other) == "other.pem: holds no private key, PEM, or one that is broken"
    assert refused(certificate, key, key) == "one.key: holds no certificates, PEM, or one that is broken"
    cut = certificate.with_name("cut.pem")
    cut.write_bytes(certificate.read_bytes()[:-100])
    assert refused(cut, key) == "cut.pem: holds no certificates, PEM, or one that is broken"
    empty = certificate.with_name("empty.pem")
    empty.touch()
    assert refused(empty, key) == "empty.pem: holds no certificates, PEM, or one that is broken"


def test_what_is_not_in_time_is_refused(authority: Authority) -> None:
    """It would be refused by every client."""
    old = authority.sign("gone", days=(-3, -1))
    assert "gone.pem: the certificate CN=gone ended" in refused(*old)
    early = authority.sign("early", days=(1, 3))
    assert "early.pem: the certificate CN=early begins" in refused(*early)
    good = authority.sign("good", days=(-1, 9))
    served(*good, authority.certificate)
    assert "authority.pem: the certificate CN=authority ended" in refused(
        *good, authority.certificate, now=time.time() + 2 * DAY
    )


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: rsa.generate_private_key(65_537, 1_024), "none that clients speak with"),
        (ed25519.Ed25519PrivateKey.generate, "none that clients speak with"),
        (lambda: ec.generate_private_key(ec.SECP521R1()), "none that clients speak with"),
        (lambda: ec.generate_private_key(ec.SECP256R1()), "is not the key of"),
    ],
    ids=["RSA 1024", "Ed25519", "P-521", "another"],
)
def test_a_key_that_nobody_speaks_with_is_refused(authority: Authority, make: object, says: str) -> None:
    """Each handshake would fail."""
    certificate, key = authority.sign("keys")
    assert callable(make)
    _write(key, make(), serialization.NoEncryption())
    assert says in refused(certificate, key)


def test_an_encrypted_key_is_refused(authority: Authority) -> None:
    """There is nobody to ask for its passphrase."""
    certificate, key = authority.sign("locked")
    _write(key, ec.generate_private_key(ec.SECP256R1()), serialization.BestAvailableEncryption(b"passphrase"))
    assert "locked.key: the key is encrypted" in refused(certificate, key)


def _write(path: Path, key: object, encryption: serialization.KeySerializationEncryption) -> None:
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey)
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))


def test_names_are_of_their_kind() -> None:
    """A URI is no DNS name, whatever it looks like, and the common name is none at all."""
    properties = {
        "x509_common_name": [b"gateway"],
        "x509_subject_alternative_name": [b"spiffe://example.org/a", b"Gateway.shop", b"me@example.org"],
        "peer_spiffe_id": [b"spiffe://example.org/a"],
        "peer_uri": [b"spiffe://example.org/a"],
        "peer_dns": [b"Gateway.shop", b"\xff"],
    }
    assert tls.names(properties) == ("spiffe://example.org/a", "dns:gateway.shop", "dns:\ufffd")
    assert tls.names({}) == ()
