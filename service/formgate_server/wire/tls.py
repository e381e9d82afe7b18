"""TLS of the gRPC port: the server's certificate, whose clients' it wants, and which of those need no token.

TLS is 1.2 or newer, with gRPC's own choice of ciphers, all of forward secrecy. The files are followed: open connections
go on, new ones get what is new.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from formgate_server import metrics
from formgate_server.core.identities import Identities
from formgate_server.core.model import Caller
from formgate_server.policies.identities import IdentitiesError, parse
from formgate_server.wire.followed import Followed, UnfitFileError

_SMALLEST_RSA = 2_048


class TlsFiles(NamedTuple):
    """Where it stands. ``client_ca`` None: clients need no certificate; ``identities`` None: all need a token."""

    certificate: Path
    key: Path
    client_ca: Path | None = None
    identities: Path | None = None


class Certificates(NamedTuple):
    """What PEM files hold that fit together, and when it ends, in seconds since 1970."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    end: float
    """Of the first certificate to end, of the server's and its issuers'."""
    client_ca_end: float | None
    """Of the last of the clients' authorities to end: one that was replaced may stay until then."""
    lifetime: float
    """For how many seconds that certificate of the server's chain is valid in all."""
    client_ca_lifetime: float | None


class Tls:
    """What a TLS port needs; its files are followed while ``run`` runs."""

    def __init__(self, files: TlsFiles, policies: Collection[str] = (), now: Callable[[], float] = time.time) -> None:
        """Read the files; identities may be bound to these ``policies``. Raises UnfitFileError."""
        paths = [path for path in files[:3] if path is not None]
        self._certificates = Followed("TLS certificates", paths, lambda read: certificates(paths, read, now()))
        self._of_clients = files.client_ca is not None
        self._identities: Followed[Identities] | None = None
        if files.identities is not None:
            path = files.identities
            self._identities = Followed("identities", [path], lambda read: _identities(path, read[0], policies))
        self._tell()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what one listener serves with, and no other: it is told of what is new once."""
        newest = _Newest(self._certificates)
        return grpc.dynamic_ssl_server_credentials(
            _configuration(newest.given),
            newest.fetch,  # type: ignore[arg-type]  # None is "nothing new", as its documentation says
            require_client_authentication=self._of_clients,
        )

    @property
    def identify(self) -> Callable[[Collection[str]], Caller] | None:
        """Finds the caller by the names of a verified certificate; None: no certificate stands for a token."""
        return None if self._identities is None else self._identify

    async def run(self) -> None:
        """Follow the files, until cancelled."""
        while True:
            await asyncio.sleep(1)
            await asyncio.to_thread(self.look)  # a network's file system may take its time

    def look(self) -> None:
        """Read the files again; see ``Followed``."""
        self._certificates.look()
        if self._identities is not None:
            self._identities.look()
        self._tell()

    def _identify(self, names: Collection[str]) -> Caller:
        assert self._identities is not None  # noqa: S101 - else nobody has been given this
        return self._identities.value(names)

    def _tell(self) -> None:
        newest = self._certificates.value
        metrics.certificate_end.labels("server").set(newest.end)
        metrics.certificate_lifetime.labels("server").set(newest.lifetime)
        if newest.client_ca_end is not None and newest.client_ca_lifetime is not None:
            metrics.certificate_end.labels("client_ca").set(newest.client_ca_end)
            metrics.certificate_lifetime.labels("client_ca").set(newest.client_ca_lifetime)
        metrics.files_refused["certificates"].set(self._certificates.is_refused)
        metrics.files_refused["identities"].set(self._identities is not None and self._identities.is_refused)


class _Newest:
    """What a listener has been given of the certificates that are followed."""

    def __init__(self, certificates: Followed[Certificates]) -> None:
        self._certificates = certificates
        self._lock = threading.Lock()
        self.given = certificates.value

    def fetch(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what is new for a new connection; None: nothing. gRPC calls this in threads of its own."""
        with self._lock:
            newest = self._certificates.value
            if newest is self.given:
                return None
            self.given = newest
        return _configuration(newest)


def _configuration(of: Certificates) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(of.key, of.chain)], of.client_ca)


def _identities(path: Path, content: bytes, policies: Collection[str]) -> Identities:
    try:
        return parse(path, content, policies)
    except IdentitiesError as error:
        raise UnfitFileError(str(error)) from error


def certificates(paths: Sequence[Path], contents: Sequence[bytes], now: float) -> Certificates:
    """Return what the files of a certificate, its key and perhaps of clients' authorities hold.

    Raises UnfitFileError unless gRPC can serve it, now. No content is ever told: it may be a key in the wrong file.
    """
    chain = _parsed(paths[0], contents[0])
    key = _public(paths[1], contents[1])
    if chain[0].public_key() != key:
        raise UnfitFileError(f"{paths[1]}: is not the key of the first certificate in {paths[0]}")
    for each in chain:
        _in_time(paths[0], each, now)
    first = min(chain, key=_end)
    if len(paths) == 2:  # noqa: PLR2004 - certificate and key
        return Certificates(contents[0], contents[1], None, _end(first), None, _lifetime(first), None)
    authorities = _parsed(paths[2], contents[2])
    last = max(authorities, key=_end)
    _in_time(paths[2], last, now)
    return Certificates(
        contents[0], contents[1], contents[2], _end(first), _end(last), _lifetime(first), _lifetime(last)
    )


def _parsed(path: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except ValueError:
        raise UnfitFileError(f"{path}: holds no certificates, PEM, or one that is broken") from None


def _public(path: Path, content: bytes) -> ec.EllipticCurvePublicKey | rsa.RSAPublicKey:
    try:
        key = load_pem_private_key(content, None)
    except TypeError:
        raise UnfitFileError(f"{path}: the key is encrypted: give it without a passphrase, mode 0600") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnfitFileError(f"{path}: holds no private key, PEM, or one that is broken") from None
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        return key.public_key()
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= _SMALLEST_RSA:
        return key.public_key()
    raise UnfitFileError(f"{path}: the key is none that clients speak with: make one of ECDSA P-256, or RSA 2048")


def _in_time(path: Path, certificate: x509.Certificate, now: float) -> None:
    whose = certificate.subject.rfc4514_string() or f"serial {certificate.serial_number:x}"
    if now >= _end(certificate):
        when = certificate.not_valid_after_utc
        raise UnfitFileError(f"{path}: the certificate {whose} ended {when:%Y-%m-%d %H:%M} UTC: have it renewed")
    if now < certificate.not_valid_before_utc.timestamp():
        when = certificate.not_valid_before_utc
        raise UnfitFileError(
            f"{path}: the certificate {whose} begins {when:%Y-%m-%d %H:%M} UTC only: look at this machine's clock"
        )


def _end(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _lifetime(certificate: x509.Certificate) -> float:
    return _end(certificate) - certificate.not_valid_before_utc.timestamp()


def names(properties: Mapping[str, Iterable[bytes]]) -> tuple[str, ...]:
    """Return the names in a client's verified certificate, of which ``Identities`` knows some.

    ``properties`` is what gRPC calls the auth context. It has a SPIFFE id only where that is the only URI.
    """
    spiffe = (each.decode(errors="replace") for each in properties.get("peer_spiffe_id", ()))
    dns = (f"dns:{each.decode(errors='replace').lower()}" for each in properties.get("peer_dns", ()))
    return (*spiffe, *dns)
