"""The identities file, and whom it finds."""

from __future__ import annotations

from pathlib import Path

import pytest

from formgate_server.core.errors import UnauthenticatedError
from formgate_server.core.identities import Identities
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.policies.identities import IdentitiesError, parse

GOOD = """
[[identity]]
name = "gateway"
spiffe = "spiffe://example.org/ns/shop/sa/gateway"
role = "checker"
policy = "default"

[[identity]]
name = "console"
dns = "console.shop.svc"
role = "manager"
account_id = "acme"
"""
SPIFFE = "spiffe://example.org/ns/shop/sa/gateway"


def read(text: str) -> Identities:
    """Parse the text of a file."""
    return parse(Path("ids.toml"), text.encode(), {"default"})


def test_a_name_is_its_caller() -> None:
    """With role and bonds; in the audit trail stands `cert.` and its name."""
    identities = read(GOOD)
    assert identities([SPIFFE]) == Caller("cert.gateway", ServiceRole.CHECKER, "", "default")
    assert identities(["dns:other", "dns:console.shop.svc"]) == Caller("cert.console", ServiceRole.MANAGER, "acme")


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["dns:other"],
        ["console.shop.svc"],
        [f"dns:{SPIFFE}"],
        [f"{SPIFFE}/x"],
        [SPIFFE.upper()],
        ["dns:*.shop.svc"],
        [SPIFFE, "dns:console.shop.svc"],
    ],
    ids=["none", "unknown", "no kind", "another kind", "longer", "upper case", "wildcard", "two of them"],
)
def test_any_other_certificate_is_nobodys(names: list[str]) -> None:
    """A name is compared whole and by its kind, and a certificate of two identities is neither's."""
    with pytest.raises(UnauthenticatedError) as raised:
        read(GOOD)(names)
    assert raised.value.reason == "UNKNOWN_CLIENT_CERTIFICATE"


def test_an_empty_file_knows_nobody() -> None:
    """All need tokens then."""
    assert read("") == Identities({})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('role = "checker"', 'role = "root"'), "ids.toml:5: identity.0.role: "),
        (('policy = "default"', 'policy = "nope"'), "ids.toml:6: identity.0.policy: there is no policy nope"),
        (('policy = "default"', 'polcy = "default"'), "ids.toml:6: identity.0.polcy: "),
        (('name = "console"', 'name = "gateway"'), "ids.toml:9: identity.1.name: there is another identity named"),
        (('name = "console"', 'name = "Con sole"'), "ids.toml:9: identity.1.name: "),
        (('dns = "console.shop.svc"', ""), "identity.1: needs one of spiffe and dns"),
        (('dns = "console.shop.svc"', f'dns = "a"\nspiffe = "{SPIFFE}"'), "needs one of spiffe and dns"),
        (('dns = "console.shop.svc"', f'spiffe = "{SPIFFE}"'), f"there is another identity for {SPIFFE}"),
        (('dns = "console.shop.svc"', 'dns = "*.shop.svc"'), "identity.1.dns: is no DNS name"),
        (('dns = "console.shop.svc"', 'dns = "Console"'), "identity.1.dns: is no DNS name"),
        (('account_id = "acme"', 'account_id = "../acme"'), "identity.1.account_id: "),
        (("[[identity]]", "[[identities]]"), "identities: "),
        (("[[identity]]", "[[identity]"), "ids.toml:2: the file: is not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_line_and_field(change: tuple[str, str], says: str) -> None:
    """Nothing of such a file is used."""
    with pytest.raises(IdentitiesError) as raised:
        read(GOOD.replace(*change))
    assert says in str(raised.value)


@pytest.mark.parametrize(
    "name",
    ["spiffe://example.org", "spiffe://example.org/", "spiffe://example.org/a//b", "spiffe://example.org/a/../b",
     "spiffe://Example.org/a", "spiffe://example.org/a?b", "spiffe://example.org:1/a", "https://example.org/a",
     "spiffe://example.org/a b", "spiffe:///a", "spiffe://example.org/" + "a" * 2_048],
)  # fmt: skip
def test_what_no_workload_can_have_is_refused(name: str) -> None:
    """A SPIFFE id that no certificate can show is a slip of the pen."""
    with pytest.raises(IdentitiesError, match="is no SPIFFE id"):
        read(GOOD.replace(SPIFFE, name))


def test_not_utf8_is_refused() -> None:
    """By the file's name."""
    with pytest.raises(IdentitiesError, match=r"ids\.toml: is not UTF-8"):
        parse(Path("ids.toml"), b"\xff", ())
