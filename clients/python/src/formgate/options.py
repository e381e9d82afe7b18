"""Where the service is and how it is spoken to: given as arguments, else by ``FORMGATE_*``."""

from __future__ import annotations

import contextlib
import importlib
import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import grpc

# gRPC imports it with the first channel. A fork at that moment would leave the child a module that is half imported.
with contextlib.suppress(ImportError):
    importlib.import_module("grpc._channel")

_DEFAULT_ADDRESS: Final = "127.0.0.1:50051"
_LARGEST_PORT: Final = 65_535
_LARGEST_ANSWER: Final = 64 * 2**20
_SCHEMES: Final = ("dns:", "ipv4:", "ipv6:", "unix:", "unix-abstract:", "xds:", "passthrough:")
_HOST: Final = re.compile(r"[A-Za-z0-9_.-]+", re.ASCII)
_ROUND_ROBIN: Final = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
_YES: Final = {"1", "true", "yes", "on"}
_NO: Final = {"", "0", "false", "no", "off"}


@dataclass(frozen=True, slots=True)
class Tls:
    """How the service proves who it is, and this client where it is asked to.

    ``ca``, ``cert`` and ``key`` are PEM: the bytes themselves, or a file's path. Without ``ca`` the authorities that
    gRPC ships are trusted. ``cert`` and ``key`` go together: this client's own. ``server_name`` is the name that the
    server's certificate must be for, where that is not the address.
    """

    ca: bytes | str | Path | None = None
    cert: bytes | str | Path | None = None
    key: bytes | str | Path | None = field(default=None, repr=False)
    server_name: str = ""

    def read(self) -> Tls:
        """Return the same with what the files hold now. Raises OSError, and ValueError for half a certificate."""
        if (self.cert is None) != (self.key is None):
            raise ValueError("a client certificate needs both `cert` and `key`")
        return replace(self, ca=_pem(self.ca), cert=_pem(self.cert), key=_pem(self.key))

    def credentials(self) -> grpc.ChannelCredentials:
        """Return gRPC's."""
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.key), _pem(self.cert))


def _pem(given: bytes | str | Path | None) -> bytes | None:
    return Path(given).read_bytes() if isinstance(given, str | Path) else given


@dataclass(frozen=True, slots=True)
class Connection:
    """All that a channel is made of."""

    target: str
    """For gRPC, such as ``dns:///formgate.example:50051``: all that it stands for are called in turn."""
    token: str = field(repr=False)
    """The service token; empty: none is shown."""
    tls: Tls | None

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call carries."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel_options(self) -> list[tuple[str, Any]]:
        """Return gRPC's options for this connection."""
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", _ROUND_ROBIN),
            ("grpc.service_config_disable_resolution", 1),
            ("grpc.max_receive_message_length", _LARGEST_ANSWER),
            # A server that is back is found soon: a check waits for a quarter of a second.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", 1_000),
            ("grpc.max_reconnect_backoff_ms", 2_000),
            ("grpc.dns_min_time_between_resolutions_ms", 1_000),
            # One whose machine is gone is found dead within half a minute.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 5_000),
        ]
        if _is_loopback(self.target):
            options.append(("grpc.enable_http_proxy", 0))  # a proxy of the environment is for the world outside
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return options

    def channel(self) -> grpc.Channel:
        """Make a channel; nothing connects before the first call."""
        if self.tls is None:
            return grpc.insecure_channel(self.target, self.channel_options())
        return grpc.secure_channel(self.target, self.tls.credentials(), self.channel_options())

    def aio_channel(self) -> grpc.aio.Channel:
        """Make a channel for the running loop, likewise."""
        if self.tls is None:
            return grpc.aio.insecure_channel(self.target, self.channel_options())
        return grpc.aio.secure_channel(self.target, self.tls.credentials(), self.channel_options())


def connection(
    address: str | Sequence[str] | None = None,
    token: str | None = None,
    *,
    tls: Tls | bool | None = None,
    insecure: bool | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Connection:
    """Put together where to connect; what is None comes from the environment.

    Raises ValueError where that makes no sense, and where a token would travel in clear beyond this machine; OSError
    where a file can not be read: now, since a check must not fail by it.
    """
    addresses = _split(address) if isinstance(address, str) else list(address or ())
    if not addresses:
        addresses = [each for each in _split(environment.get("FORMGATE_ADDRESS", "")) if each]
    target = _target(addresses or [_DEFAULT_ADDRESS])
    token = _token(environment) if token is None else token.strip()
    if not token.isprintable() or not token.isascii() or " " in token:
        raise ValueError("the token has characters that none has")
    tls = _tls(environment, given=tls)
    if insecure is None:
        insecure = _flag("FORMGATE_INSECURE", environment)
    if token and tls is None and not insecure and not _is_loopback(target):
        raise ValueError(
            f"the token would travel in clear to {target}: give `tls`, or say `insecure=True` (FORMGATE_INSECURE=1)"
        )
    return Connection(target, token, None if tls is None else tls.read())


def _token(environment: Mapping[str, str]) -> str:
    if token := environment.get("FORMGATE_TOKEN", "").strip():
        return token
    if file := environment.get("FORMGATE_TOKEN_FILE", ""):
        return Path(file).read_text(encoding="ascii").strip()
    return ""


def _tls(environment: Mapping[str, str], *, given: Tls | bool | None) -> Tls | None:
    if isinstance(given, Tls):
        return given
    ca = environment.get("FORMGATE_TLS_CA_FILE") or None
    cert = environment.get("FORMGATE_TLS_CLIENT_CERT_FILE") or None
    wanted = _flag("FORMGATE_TLS", environment) or ca is not None or cert is not None if given is None else given
    if not wanted:
        return None
    return Tls(ca, cert, environment.get("FORMGATE_TLS_CLIENT_KEY_FILE") or None)


def _flag(name: str, environment: Mapping[str, str]) -> bool:
    value = environment.get(name, "").strip().lower()
    if value not in _YES | _NO:
        raise ValueError(f"{name} is neither 1 nor 0")
    return value in _YES


def _split(address: str) -> list[str]:
    """Return the addresses of a text; the commas of a target of gRPC's are its own."""
    return [address] if address.startswith(_SCHEMES) else [each.strip() for each in address.split(",")]


def _target(addresses: Sequence[str]) -> str:
    """Return gRPC's target for one or several addresses. Raises ValueError for what is none."""
    if len(addresses) == 1:
        (only,) = addresses
        if only.startswith(_SCHEMES):
            return only
        host, port = _host_and_port(only)
        return f"dns:///{f'[{host}]' if ':' in host else host}:{port}"
    parts = [_host_and_port(each) for each in addresses]
    try:
        found = [(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host), port) for host, port in parts]
    except ValueError:
        raise ValueError(
            "several addresses must be IP addresses; a name that stands for several is given alone"
        ) from None
    if all(ip.version == 4 for ip, _ in found):  # noqa: PLR2004 - IPv4
        return "ipv4:" + ",".join(f"{ip}:{port}" for ip, port in found)
    return "ipv6:" + ",".join(f"[{ip if ip.version == 6 else f'::ffff:{ip}'}]:{port}" for ip, port in found)  # noqa: PLR2004


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    if not (_is_host(host) and port.isascii() and port.isdigit() and 0 < int(port) <= _LARGEST_PORT):
        raise ValueError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051")
    return host, int(port)


def _is_host(host: str) -> bool:
    """Tell whether it is a name or an IP address: no URL, nor several of them."""
    if ":" not in host:
        return _HOST.fullmatch(host) is not None
    try:
        return ipaddress.ip_address(host).version == 6  # noqa: PLR2004 - IPv6
    except ValueError:
        return False


def _is_loopback(target: str) -> bool:
    """Tell whether all that the target stands for is this machine. A name, but for localhost, may be any."""
    scheme, _, rest = target.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    if scheme not in {"dns", "ipv4", "ipv6"}:
        return False
    if scheme == "dns" and rest.startswith("//") and not rest.startswith("///"):
        return False  # asked of a name server of its own: whatever that says
    hosts = [each.rpartition(":")[0].strip("[]") for each in rest.removeprefix("///").split(",")]
    return all(_is_loopback_host(host) for host in hosts)


def _is_loopback_host(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
