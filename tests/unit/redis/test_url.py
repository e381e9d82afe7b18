import re
import ssl

import pytest

from formgate_server.storage.redis.url import Address, Login, parse_url

SECRET = "s3cr3t"


def test_one_server() -> None:
    """redis:// names a host, a port, a database, a user and a password; what is left out has Redis' own default."""
    target = parse_url("redis://bob:p%40ss%2Fword@redis.example:7000/3")
    assert (target.kind, target.addresses, target.database) == ("single", (Address("redis.example", 7000),), 3)
    assert target.login == Login("bob", "p@ss/word")
    assert target.tls is None
    plain = parse_url("redis://[::1]")
    assert (plain.addresses, plain.database, plain.login) == ((Address("::1", 6379),), 0, Login())
    assert parse_url("redis://host?db=4").database == 4


def test_a_password_alone() -> None:
    """A password without a user is the default user's; both go by AUTH, which Redis never quotes back."""
    assert parse_url("redis://:pw@host").login.command == ("AUTH", "pw")
    assert parse_url("redis://bob:pw@host").login.command == ("AUTH", "bob", "pw")
    assert parse_url("redis://host").login.command is None
    assert parse_url("redis://bob:p@s/s:w@host").login == Login("bob", "p@s/s:w")


def test_a_cluster_and_sentinels() -> None:
    """A cluster is named by several of its nodes; a service behind Sentinel by its sentinels and its name."""
    cluster = parse_url("redis+cluster://u:p@a:1,b:2,c")
    assert cluster.kind == "cluster"
    assert cluster.addresses == (Address("a", 1), Address("b", 2), Address("c", 6379))
    sentinel = parse_url("redis+sentinel://u:p@a,b:2/main?db=5&sentinel_username=s&sentinel_password=q")
    assert (sentinel.kind, sentinel.service, sentinel.database) == ("sentinel", "main", 5)
    assert sentinel.addresses == (Address("a", 26379), Address("b", 2))
    assert (sentinel.login, sentinel.sentinel_login) == (Login("u", "p"), Login("s", "q"))


def test_tls_checks_who_answers() -> None:
    """rediss:// checks the certificate, and its name unless the URL says not to."""
    for scheme in ("rediss", "rediss+cluster"):
        tls = parse_url(f"{scheme}://host").tls
        assert tls is not None
        assert tls.verify_mode == ssl.CERT_REQUIRED
        assert tls.check_hostname
    nameless = parse_url("rediss://host?ssl_check_hostname=false").tls
    assert nameless is not None
    assert nameless.verify_mode == ssl.CERT_REQUIRED
    assert not nameless.check_hostname


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host", "begins with redis://"),
        ("redis:host", "begins with redis://"),
        ("redis+proxy://host", "begins with redis://"),
        ("redis://", "names a host"),
        (f"redis://:{SECRET}@", "names a host"),
        (f"redis://:{SECRET}@host:port", "port is a number"),
        (f"redis://:{SECRET}@host:0", "port is a number"),
        (f"redis://:{SECRET}@host:70000", "port is a number"),
        (f"redis://:{SECRET}@a:1,b:2", "has one host"),
        (f"redis://:{SECRET}@host/one", "database is a number"),
        (f"redis://{SECRET}@host", "user:password@ or :password@"),
        (f"redis://u:a?{SECRET}@host:1", "write ? as %3F"),
        (f"redis://:{SECRET}@host?timeout=1", "unknown parameter"),
        (f"redis://:{SECRET}@host?ssl_ca_certs=x", "rediss://"),
        (f"rediss://:{SECRET}@host?ssl_ca_certs=/no/such/file", "/no/such/file: No such file"),
        (f"rediss://:{SECRET}@host?ssl_keyfile=/no/such/file", "goes with ssl_certfile"),
        (f"rediss://:{SECRET}@host?ssl_check_hostname=maybe", "true or false"),
        (f"redis+cluster://:{SECRET}@host/1", "only database 0"),
        (f"redis+sentinel://:{SECRET}@host", "names the service"),
    ],
)
def test_what_will_not_do_is_said_without_the_password(url: str, says: str) -> None:
    """A URL that will not do says what is wrong with it, and shows nothing of the password, wherever it stands."""
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        parse_url(url)
    assert SECRET not in str(caught.value)


def test_no_repr_shows_a_password() -> None:
    """What a URL was parsed into can be logged."""
    target = parse_url(f"redis+sentinel://u:{SECRET}@a/main?sentinel_password={SECRET}")
    assert SECRET not in repr(target)
    assert "main" in repr(target)
