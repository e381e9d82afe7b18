"""PostgreSQL, the real one, over TLS, with the authorities that the system trusts."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import URL, text

from formgate_server.core.errors import UnavailableError
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.postgres_tls import system_trust
from tests.support.certificates import Authority
from tests.support.postgres import PostgresServer
from tests.support.stores import opened

SYSTEM = ({"sslmode": "verify-full"}, {"sslmode": "verify-full", "sslrootcert": "system"}, {"sslrootcert": "system"})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority of these tests."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[PostgresServer]:
    """A server that shows a certificate of that authority, for 127.0.0.1."""
    with PostgresServer(certificate=authority.sign("server")) as server:
        yield server


@pytest.fixture(autouse=True)
def _trusting(authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a system that trusts that authority only, and a home with nothing in it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))


async def is_encrypted(url: URL) -> bool:
    """Tell whether a connection is. Raises UnavailableError."""
    async with opened(url) as database, database.reading() as connection:
        found = await connection.execute(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        return bool(found.scalar_one())


@pytest.mark.parametrize("query", SYSTEM)
async def test_what_the_system_trusts_is_trusted(server: PostgresServer, query: dict[str, str]) -> None:
    """Without a file of authorities, and as libpq writes it."""
    async with server.database() as url:
        assert await is_encrypted(url.update_query_dict(query))


@pytest.mark.parametrize("query", SYSTEM)
async def test_what_it_does_not_trust_is_not(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    """Another authority's certificate is refused; whoever starts the server is told why."""
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority(tmp_path, "other").certificate))
    with pytest.raises(UnavailableError) as refused:
        await is_encrypted(server.url().update_query_dict(query))
    assert "CERTIFICATE_VERIFY_FAILED" in refused.value.detail


@pytest.mark.parametrize("query", SYSTEM)
async def test_another_name_is_refused(server: PostgresServer, query: dict[str, str]) -> None:
    """A certificate that is good, but for another host: no server at all."""
    with pytest.raises(UnavailableError) as refused:
        await is_encrypted(server.url().set(host="localhost").update_query_dict(query))
    assert "CERTIFICATE_VERIFY_FAILED" in refused.value.detail


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "verify-ca"])
def test_a_weaker_mode_with_it_is_refused(mode: str) -> None:
    """As by libpq: without the name, any certificate of any public authority would do."""
    with pytest.raises(UnfitDatabaseError, match="verify-full"):
        system_trust(f"postgresql://h/d?sslmode={mode}&sslrootcert=system")


def test_what_names_an_authority_is_left_to_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, in the URL, in a variable or where libpq looks for it, is trusted alone."""
    assert system_trust("postgresql://h/d?sslmode=verify-full&sslrootcert=/ca.pem") is None
    assert system_trust("postgresql://h/d?sslmode=require") is None
    assert system_trust("postgresql://h/d") is None
    monkeypatch.setenv("PGSSLROOTCERT", "/ca.pem")
    assert system_trust("postgresql://h/d?sslmode=verify-full") is None
    monkeypatch.setenv("PGSSLROOTCERT", "system")
    assert system_trust("postgresql://h/d?sslmode=verify-full") is not None
    monkeypatch.delenv("PGSSLROOTCERT")
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert system_trust("postgresql://h/d") is not None
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql/root.crt").write_text("")
    assert system_trust("postgresql://h/d") is None


def test_what_else_is_said_of_tls_is_kept(authority: Authority) -> None:
    """A client's certificate is shown, a version is the least; what can not be had is an error, never left out."""
    url = "postgresql://h/d?sslmode=verify-full"
    certificate, key = authority.sign("client")
    make = system_trust(f"{url}&sslcert={certificate}&sslkey={key}&ssl_min_protocol_version=TLSv1.3")
    assert make is not None
    context = make()
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    for query in ("sslcert=/none.pem", "sslcrl=/none.pem"):
        make = system_trust(f"{url}&{query}")
        assert make is not None
        with pytest.raises(OSError, match="No such file"):
            make()
    with pytest.raises(UnfitDatabaseError):
        system_trust(f"{url}&ssl_max_protocol_version=9")
