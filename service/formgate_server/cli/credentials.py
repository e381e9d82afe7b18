"""Which service token the command shows. Never one that was typed: arguments are seen by everybody on the machine."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from formgate_server.cli.errors import CommandError, ExitCode

DEFAULT_DATA = Path("formgate-data")
MANAGER_TOKEN = "manager.token"  # noqa: S105  # a file's name

_HINT = (
    "say --token-file FILE, or set FORMGATE_TOKEN or FORMGATE_TOKEN_FILE; on the server's machine --data DIR will do"
)


@dataclass(frozen=True, slots=True)
class Token:
    """A service token, and where it comes from, for people."""

    value: str = field(repr=False)
    source: str


NO_TOKEN = Token("", "nobody")


def find_token(
    token_file: Path | None,
    data: Path | None,
    address: str,
    environment: Mapping[str, str],
    *,
    certificate: bool = False,
) -> Token:
    """Return the token of the first place that is named: the options, the environment, ``./formgate-data``.

    With a ``certificate``, which may stand for it, there need be none. Raises CommandError where there is none, or none
    that can be sent.
    """
    if token_file is not None:
        return _read(token_file)
    if data is not None:
        return _read(data / MANAGER_TOKEN)
    if value := environment.get("FORMGATE_TOKEN", ""):
        return _checked(value, "FORMGATE_TOKEN")
    if name := environment.get("FORMGATE_TOKEN_FILE", ""):
        return _read(Path(name))
    if name := environment.get("FORMGATE_DATA", ""):
        return _read(Path(name) / MANAGER_TOKEN)
    return NO_TOKEN if certificate else _found_beside(address)


def _found_beside(address: str) -> Token:
    path = DEFAULT_DATA / MANAGER_TOKEN
    if not path.exists():
        raise CommandError(f"no token: there is no {path} here", ExitCode.USAGE, hint=_HINT)
    if not is_loopback(address):
        # It opens everything on this machine's server: nobody has said that it should be shown to another.
        raise CommandError(f"no token for {address}: {path} is this machine's server's", ExitCode.USAGE, hint=_HINT)
    return _read(path)


def _read(path: Path) -> Token:
    try:
        return _checked(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise CommandError(f"the token in {path} can not be read: {why}", ExitCode.USAGE, hint=_HINT) from None


def _checked(text: str, source: str) -> Token:
    value = text.strip()
    if not (value.isascii() and value.isprintable() and value and " " not in value):
        raise CommandError(f"{source} does not hold a token: one line of printable ASCII", ExitCode.USAGE, hint=_HINT)
    return Token(value, source)


def is_loopback(address: str) -> bool:
    """Tell whether HOST:PORT is on this machine whatever the network is."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
