"""URLs of PostgreSQL as libpq has them, read for asyncpg. No message has anything of a URL but names."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, urlencode, urlsplit

from formgate_server.storage.sql.parts import UnfitDatabaseError

SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")

# What asyncpg reads itself, and what is a setting of the session by libpq's own name.
_KNOWN = {
    *("host", "port", "dbname", "database", "user", "password", "passfile", "service", "krbsrvname", "gsslib"),
    *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version", "application_name", "options"),
}
# What is settled here: the timeouts by ourselves, and that only a primary will do.
_SETTLED = {
    *("connect_timeout", "tcp_user_timeout", "target_session_attrs", "client_encoding", "fallback_application_name"),
    *("keepalives", "keepalives_idle", "keepalives_interval", "keepalives_count"),
}
# What asyncpg does not have; it is left out where it demands nothing.
_LENIENT = {"channel_binding": {"disable", "prefer"}, "gssencmode": {"disable", "prefer"}, "sslcompression": {"0"}}


def hosts_of(url: str) -> list[str]:
    """Return one URL for asyncpg for each host of ``url``. Raises UnfitDatabaseError."""
    # urlsplit by itself refuses several hosts of which one has brackets, in all but the oldest of today's Pythons.
    rest = url.partition("://")[2]
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    credentials, at, hosts = authority.rpartition("@")
    behind = rest.removeprefix(authority)
    if "@" in credentials or "#" in behind:
        raise UnfitDatabaseError("characters such as @ / # ? in a password have to be written as %40 %2F %23 %3F")
    return [_url_of(host, f"{credentials}{at}", behind) for host in hosts.split(",")]


def _url_of(host: str, credentials: str, behind: str) -> str:
    try:
        parts = urlsplit(f"postgresql://{credentials}{host}{behind}")
        query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise UnfitDatabaseError("this is no URL of a PostgreSQL database") from None
    kept = [(name, value) for name, value in query if _is_kept(name, value)]
    if not host and not any(name in {"host", "service"} for name, _ in kept):
        raise UnfitDatabaseError("the URL of a PostgreSQL database has to name its host")
    _, colon, port = host.rpartition("]")[2].partition(":")
    if colon and not (port.isascii() and port.isdigit()):
        raise UnfitDatabaseError("the URL's port is no number; @ / # ? in a password are written as %40 %2F %23 %3F")
    return parts._replace(query=urlencode(kept)).geturl()


def _is_kept(name: str, value: str) -> bool:
    if name in _KNOWN:
        return True
    if name in _SETTLED or value in _LENIENT.get(name, ()):
        return False
    raise UnfitDatabaseError(f"the URL's parameter {name} is not supported")
