"""Which Redis: one URL says it all.

::

    redis://user:password@host:6379/0                                rediss:// with TLS, so too below
    redis+cluster://user:password@host:port,host:port
    redis+sentinel://user:password@host:26379,host:26379/service-name?db=0&sentinel_username=…&sentinel_password=…

With TLS: ``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile`` (paths of PEM files) and ``ssl_check_hostname=false``.
No error here, and no ``repr``, shows a password.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote

_KINDS: Final[dict[str, Literal["single", "cluster", "sentinel"]]] = {
    "": "single",
    "cluster": "cluster",
    "sentinel": "sentinel",
}
_TLS_PARAMETERS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"})
_SENTINEL_PARAMETERS = frozenset({"sentinel_username", "sentinel_password"})
_REDIS_PORT = 6379
_SENTINEL_PORT = 26379


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Login:
    """How a server is told who we are; ``password`` None: it is not told."""

    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def command(self) -> tuple[str, ...] | None:
        """The AUTH to send, if any."""
        if self.password is None:
            return None
        return ("AUTH", self.password) if self.username is None else ("AUTH", self.username, self.password)


@dataclass(frozen=True)
class Target:
    """A Redis: its servers' addresses (a cluster's: some of them; Sentinel's: the sentinels') and how they are met."""

    kind: Literal["single", "cluster", "sentinel"]
    addresses: tuple[Address, ...]
    login: Login
    database: int = 0
    tls: ssl.SSLContext | None = None
    service: str = ""
    """The name that Sentinel knows the primary by."""
    sentinel_login: Login = Login()


def parse_url(url: str) -> Target:
    """Return what a URL says. Raises ValueError, which says what is wrong with it and shows no password."""
    scheme, separator, rest = url.partition("://")
    base, _, kind_name = scheme.lower().partition("+")
    kind = _KINDS.get(kind_name)
    if not separator or base not in ("redis", "rediss") or kind is None:
        raise ValueError(
            "a Redis URL begins with redis://, rediss://, redis+cluster://, rediss+cluster://, redis+sentinel:// or "
            "rediss+sentinel://"
        )
    rest, _, query = rest.partition("?")
    credentials, _, location = rest.rpartition("@")
    hosts, _, path = location.partition("/")
    parameters = _parameters(query, kind, tls=base == "rediss")
    service = ""
    if kind == "sentinel":
        service, _, path = unquote(path).partition("/")
        if not service:
            raise ValueError("a redis+sentinel URL names the service behind its hosts: …host:26379/service-name")
    return Target(
        kind=kind,
        addresses=_addresses(hosts, kind),
        login=_login(credentials),
        database=_database(path, parameters.get("db"), kind),
        tls=_tls(parameters) if base == "rediss" else None,
        service=service,
        sentinel_login=Login(parameters.get("sentinel_username"), parameters.get("sentinel_password")),
    )


def _parameters(query: str, kind: str, *, tls: bool) -> dict[str, str]:
    known = {"db"} | (_TLS_PARAMETERS if tls else set()) | (_SENTINEL_PARAMETERS if kind == "sentinel" else set())
    parameters = dict(parse_qsl(query, keep_blank_values=True))
    for name in parameters:
        if name in _TLS_PARAMETERS and not tls:
            raise ValueError(f"{name} is for rediss:// URLs, which use TLS")
        if name not in known:
            # Its name is not shown: behind a `?` in a password that was not written as %3F, it is a secret's rest.
            raise ValueError(
                f"a Redis URL has an unknown parameter behind '?'; known here: {', '.join(sorted(known))} "
                "(in a password, write ? as %3F)"
            )
    return parameters


def _addresses(hosts: str, kind: str) -> tuple[Address, ...]:
    addresses = tuple(
        _address(host, _SENTINEL_PORT if kind == "sentinel" else _REDIS_PORT) for host in hosts.split(",")
    )
    if kind == "single" and len(addresses) > 1:
        raise ValueError("redis:// has one host; several are for redis+cluster:// and redis+sentinel://")
    return addresses


def _address(text: str, default_port: int) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        raise ValueError("a Redis URL names a host: redis://host:port/0")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) <= 65_535:  # noqa: PLR2004 - TCP
        raise ValueError("a Redis URL's port is a number from 1 to 65535")
    return Address(host, int(port))


def _login(credentials: str) -> Login:
    if not credentials:
        return Login()
    username, colon, password = credentials.partition(":")
    if not colon:
        raise ValueError("a Redis URL's credentials are user:password@ or :password@")
    return Login(unquote(username) or None, unquote(password))


def _database(path: str, parameter: str | None, kind: str) -> int:
    text = parameter if parameter is not None else path.strip("/")
    if not text:
        return 0
    if not text.isascii() or not text.isdigit():
        raise ValueError("a Redis URL's database is a number: redis://host:port/0")
    if kind == "cluster" and int(text):
        raise ValueError("a Redis Cluster has only database 0")
    return int(text)


def _tls(parameters: dict[str, str]) -> ssl.SSLContext:
    check = parameters.get("ssl_check_hostname", "true").lower()
    if check not in ("true", "false"):
        raise ValueError("ssl_check_hostname is true or false")
    authorities, certificate = parameters.get("ssl_ca_certs"), parameters.get("ssl_certfile")
    if authorities:
        # Those alone: a private authority is named so that no public one can stand in for it.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with _reading("ssl_ca_certs", authorities):
            context.load_verify_locations(authorities)
    else:
        context = ssl.create_default_context()
    context.check_hostname = check == "true"
    if certificate:
        with _reading("ssl_certfile", certificate):
            context.load_cert_chain(certificate, parameters.get("ssl_keyfile"), password="")  # or it would ask for one
    elif parameters.get("ssl_keyfile"):
        raise ValueError("ssl_keyfile goes with ssl_certfile")
    return context


@contextmanager
def _reading(parameter: str, path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror if not isinstance(error, ssl.SSLError) else "not a PEM file of that kind"
        raise ValueError(f"{parameter} of a Redis URL cannot be read: {path}: {reason}") from error
