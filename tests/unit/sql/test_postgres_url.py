"""URLs of PostgreSQL, as libpq has them."""

import pytest

from formgate_server.settings import Settings
from formgate_server.storage.sql.engine import open_database
from formgate_server.storage.sql.parts import UnfitDatabaseError
from formgate_server.storage.sql.postgres_url import hosts_of

SECRET = "s3cr3t"


def test_one_host() -> None:
    """It is asyncpg's own, whatever of the names for it the URL begins with."""
    for scheme in ("postgresql", "postgres", "postgresql+asyncpg"):
        assert hosts_of(f"{scheme}://bob:p%40ss@db.example:6432/formgate") == [
            "postgresql://bob:p%40ss@db.example:6432/formgate"
        ]
    assert hosts_of("postgresql://[::1]:5432/x") == ["postgresql://[::1]:5432/x"]


def test_several_hosts_are_tried_one_by_one() -> None:
    """Each with a time of its own: one that hangs does not keep the others from being asked."""
    assert hosts_of("postgresql://u:p@a:1,b,[::1]:2/x?sslmode=require") == [
        "postgresql://u:p@a:1/x?sslmode=require",
        "postgresql://u:p@b/x?sslmode=require",
        "postgresql://u:p@[::1]:2/x?sslmode=require",
    ]


def test_what_is_said_of_tls_stays() -> None:
    """All of it, as it was written."""
    query = "sslmode=verify-full&sslrootcert=%2Fetc%2Fca.pem&ssl_min_protocol_version=TLSv1.3"
    assert hosts_of(f"postgresql://h/x?{query}") == [f"postgresql://h/x?{query}"]


def test_what_is_settled_here_is_left_out() -> None:
    """Timeouts are our own, and asyncpg would take what it does not know for a setting of the server."""
    query = "connect_timeout=9&target_session_attrs=any&keepalives=0&channel_binding=prefer&gssencmode=disable"
    assert hosts_of(f"postgresql://h/x?{query}") == ["postgresql://h/x"]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"postgresql://u:{SECRET}@h/x?channel_binding=require", "channel_binding"),
        (f"postgresql://u:{SECRET}@h/x?gssencmode=require", "gssencmode"),
        (f"postgresql://u:{SECRET}@h/x?require_auth=scram-sha-256", "require_auth"),
        (f"postgresql://u:p@{SECRET}@h/x", "%40"),
        (f"postgresql://u:p/{SECRET}@h/x", "%2F"),
        (f"postgresql://u:p#{SECRET}@h/x", "%23"),
        (f"postgresql://u:{SECRET}@/x", "name its host"),
        (f"postgresql://u:{SECRET}@h:12x/x", "port"),
        (f"postgresql://u:{SECRET}@[::1/x", "no URL"),
        (f"postgresql://u:{SECRET}@h/x?{SECRET}", "no URL"),
        (f"mysql://u:{SECRET}@h/x", "mysql"),
        (f"{SECRET}", "no URL"),
        (f"{SECRET}:{SECRET}@h", "no URL"),
    ],
)
def test_what_will_not_do_is_said_without_the_url(url: str, says: str) -> None:
    """What is demanded and can not be had is refused, never left out; no message has the password in it."""
    with pytest.raises(UnfitDatabaseError) as refused:
        open_database(url)
    assert says in str(refused.value)
    assert SECRET not in str(refused.value)
    assert refused.value.__cause__ is None


def test_settings_do_not_show_a_url() -> None:
    """Neither printed nor in an error."""
    settings = Settings(database_url=f"postgresql://u:{SECRET}@h/x", redis_url=f"redis://:{SECRET}@h")
    assert SECRET not in f"{settings} {settings!r} {settings.model_dump()}"
