"""What the doctor sees on this machine."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from formgate_server.doctor import machine, stores
from formgate_server.doctor.findings import Finding, Status
from formgate_server.policies.policy import load
from formgate_server.settings import Settings
from formgate_server.storage.redis.preflight import Facts
from formgate_server.storage.redis.url import Address
from tests.support.certificates import Authority

ROOT = Path(__file__).parents[2]
DAY = 86_400


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings with TLS and identities."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    certificate, key = authority.sign("server", days=(-1, 90))
    key.chmod(0o640)
    identities = folder / "identities.toml"
    identities.write_text('identity = [{ name = "a", dns = "a.b", role = "checker", policy = "default" }]')
    return Settings.model_validate(
        {
            "tls_cert_file": certificate,
            "tls_key_file": key,
            "tls_client_ca_file": authority.certificate,
            "tls_identities_file": identities,
        }
    )


def seen(given: Settings, days: float) -> list[Finding]:
    """Look at the certificates in so many days."""
    return list(machine.certificates(given, load(), lambda: time.time() + days * DAY))


def test_certificates_in_good_order(given: Settings) -> None:
    """But for a key that others may read, and an authority that ends tomorrow."""
    found = seen(given, 0)
    assert [(each.subject, each.status) for each in found] == [
        ("certificates", Status.OK),
        ("certificates", Status.WARN),
        ("certificate's key", Status.WARN),
        ("identities", Status.OK),
    ]
    assert "server.pem ends in 90 days" in found[0].text
    assert "authority.pem ends in 1 days" in found[1].text
    assert "chmod 600" in found[2].advice


def test_certificates_that_have_ended(given: Settings) -> None:
    """No server starts with one."""
    (certificate, *_) = seen(given, 91)
    assert (certificate.status, "CN=server ended" in certificate.text) == (Status.FAIL, True)


def test_identities_of_a_policy_that_is_gone(given: Settings) -> None:
    """Told with line and field."""
    found = list(machine.certificates(given, None))[-1]
    assert (found.status, "there is no policy default" in found.text) == (Status.FAIL, True)


def test_what_a_redis_lacks_is_told_with_the_whole_advice() -> None:
    """Where the advice has a colon of its own, as rights have, it is not cut there."""
    facts = Facts(Address("redis", 6379), None, None, replicas=None, replid_in_scripts=True, has_our_keys=False)
    found = [each for each in stores._of_redis(facts, Settings()) if each.status is Status.FAIL]
    assert [f"{each.text}: {each.advice}" for each in found] == list(facts.problems)
    assert [each.advice.partition(" ")[0] for each in found] == ["allow"] * 3


def test_a_slip_of_the_pen_is_told() -> None:
    """A variable that nobody reads; its value is not shown."""
    (found,) = machine.environment({"FORMGATE_PEPER_FILE": "ab" * 32, "FORMGATE_PEPPER_FILE": "x", "HOME": "/"})
    assert (found.status, found.text) == (Status.WARN, "FORMGATE_PEPER_FILE is no setting")
    assert found.advice == "is it FORMGATE_PEPPER_FILE?"


def test_what_kubernetes_tells_a_pod_is_no_slip() -> None:
    """Of a Service named formgate it sets variables of its own."""
    links = ["SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_GRPC", "PORT", "PORT_50051_TCP", "PORT_50051_TCP_ADDR"]
    assert not list(machine.environment({f"FORMGATE_{name}": "x" for name in (*links, "HEADLESS_SERVICE_HOST")}))


def test_every_variable_that_is_read_is_known() -> None:
    """By the server as a setting, else by a command or the client library."""
    sources = [*(ROOT / "service").rglob("*.py"), *(ROOT / "clients" / "python" / "src").rglob("*.py")]
    read = {
        name for source in sources for name in re.findall(r"FORMGATE_([A-Z][A-Z_]*[A-Z])", source.read_text("utf-8"))
    }
    assert read - {name.upper() for name in Settings.model_fields} <= machine.OTHERS
    assert read | {"TLS_SERVER_NAME", "KEY"} >= machine.OTHERS
