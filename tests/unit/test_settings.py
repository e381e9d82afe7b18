"""Settings that must go together."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from formgate_server.settings import Settings

TLS = {"tls_cert_file": "c", "tls_key_file": "k", "tls_client_ca_file": "ca", "tls_identities_file": "ids"}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees settings of whoever runs it."""
    for name in Settings.model_fields:
        monkeypatch.delenv(f"FORMGATE_{name.upper()}", raising=False)


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("tls_key_file", "tls_cert_file asks for tls_key_file"),
        ("tls_cert_file", "tls_key_file asks for tls_cert_file"),
        ("tls_client_ca_file", "tls_identities_file asks for tls_client_ca_file"),
    ],
)
def test_half_of_tls_is_refused(missing: str, says: str) -> None:
    """It would be less than was meant: none at all, or clients that nobody looks at."""
    with pytest.raises(ValidationError, match=says):
        Settings.model_validate({name: value for name, value in TLS.items() if name != missing})
    Settings.model_validate(TLS)


@pytest.mark.parametrize("name", ["listen", "http"])
def test_beyond_loopback_it_takes_tls_or_a_word(name: str) -> None:
    """A file of authorities alone encrypts nothing."""
    beyond = {name: "0.0.0.0:1"}
    with pytest.raises(ValidationError, match="--insecure"):
        Settings.model_validate(beyond)
    assert Settings.model_validate(beyond | TLS).serves_tls
    assert not Settings.model_validate(beyond | {"insecure": True}).serves_tls
