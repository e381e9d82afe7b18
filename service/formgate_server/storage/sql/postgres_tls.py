"""``sslrootcert=system``, which libpq has and asyncpg has not: the authorities that this machine trusts.

It is what ``sslmode=verify-full`` means here, too, where no authority is named: libpq would want a file in a home
folder, which no container has. With a weaker mode it is refused, as by libpq: anybody can have a certificate of a
public authority, and only the name in it tells the server from others.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from formgate_server.storage.sql.parts import UnfitDatabaseError

_VARIABLES = {
    name: f"PG{name.replace('_', '').upper()}"
    for name in (
        *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "service"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    )
}


def system_trust(url: str) -> Callable[[], ssl.SSLContext] | None:
    """Return what makes a context for each connection, which reads files anew; None: asyncpg makes its own.

    ``url`` is one of ``hosts_of``. What it leaves out is taken from libpq's variables. Raises UnfitDatabaseError; what
    is returned raises OSError for files that can not be read.
    """
    said = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    options = {name: said.get(name, os.environ.get(variable, "")) for name, variable in _VARIABLES.items()}
    if options["sslrootcert"] == "system":
        if options["sslmode"] not in {"", "verify-full"}:
            raise UnfitDatabaseError("sslrootcert=system needs sslmode=verify-full")
    elif options["sslmode"] != "verify-full" or options["sslrootcert"] or options["service"] or _in_home("root.crt"):
        return None
    least = _version(options["ssl_min_protocol_version"]) or ssl.TLSVersion.TLSv1_2
    most = _version(options["ssl_max_protocol_version"]) or ssl.TLSVersion.MAXIMUM_SUPPORTED
    return partial(_context, options, said.get("sslpassword", ""), least, most)


def _context(options: dict[str, str], password: str, least: ssl.TLSVersion, most: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version, context.maximum_version = least, most
    if revoked := options["sslcrl"] or _in_home("root.crl"):
        context.load_verify_locations(cafile=revoked)
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_CHAIN
    if certificate := options["sslcert"] or _in_home("postgresql.crt"):
        key = options["sslkey"] or _in_home("postgresql.key") or None
        context.load_cert_chain(certificate, key, password=lambda: password)  # never asked for at a terminal
    context.set_alpn_protocols(["postgresql"])
    return context


def _version(name: str) -> ssl.TLSVersion | None:
    try:
        return ssl.TLSVersion[name.replace(".", "_")] if name else None
    except KeyError:
        raise UnfitDatabaseError("the URL's version of TLS is none: TLSv1.2 and TLSv1.3 are") from None


def _in_home(name: str) -> str:
    """Return the path of libpq's own file of this name, or "" where there is none."""
    try:
        path = Path.home() / ".postgresql" / name
        return str(path) if path.exists() else ""
    except (OSError, RuntimeError):
        return ""
