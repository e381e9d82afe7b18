"""What checks ask, read once for all that ask the same: never another's answer, and nothing kept that is secret."""

from __future__ import annotations

from typing import Any

import pytest

from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate_server.core.errors import InvalidArgumentError
from formgate_server.core.verdict import CheckQuery
from formgate_server.rpc.asked import Asked

ASKED: dict[str, Any] = {
    "permissions": ["forms.view"],
    "resources": ["forms/f1", "folders/a/forms/f1"],
    "api_group": "reports",
    "environment": 1,
    "http_method": "GET",
    "cost": 0,
    "policy": "default",
    "explain": True,
}
OWN: dict[str, Any] = {"source_ip": "203.0.113.7", "request_id": "r1"}
CASES: list[dict[str, Any]] = [{}, *({name: value} for name, value in (ASKED | OWN).items()), ASKED | OWN]


def expected(credential: dict[str, Any], asked: dict[str, Any]) -> CheckQuery:
    """Return what is asked, read field by field."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in asked.items()}
    return CheckQuery(**credential, **values)


@pytest.mark.parametrize(
    "credential", [{"key": "k"}, {"key": ""}, {"authorization": "Bearer k"}, {"authorization": ""}]
)
def test_each_check_is_read_as_it_is_written(credential: dict[str, Any]) -> None:
    """Whatever others asked before: every field alone, all together, none, and each a second time."""
    asked = Asked()
    for case in CASES + CASES:
        assert asked.read(CheckKeyRequest(**credential, **case)) == expected(credential, case)
        other: dict[str, Any] = {name: f"{value}2" for name, value in credential.items()}
        assert asked.read(CheckKeyRequest(**other, **case)) == expected(other, case)


def test_a_check_without_a_credential_is_none() -> None:
    """Also where the same was asked with one just before."""
    asked = Asked()
    asked.read(CheckKeyRequest(key="k", **ASKED))
    with pytest.raises(InvalidArgumentError, match="credential"):
        asked.read(CheckKeyRequest(**ASKED))


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("permissions", [""] * 101),
        ("resources", ["forms//f1"]),
        ("api_group", "a b"),
        ("environment", 9),
        ("http_method", "\n"),
        ("cost", -1),
        ("policy", ".."),
        ("source_ip", "here"),
        ("request_id", "{}"),
        ("tags", {"": "x"}),
    ],
)
def test_what_is_wrong_stays_wrong(field: str, wrong: Any) -> None:
    """It is refused every time, also when all else of it was read before."""
    asked = Asked()
    asked.read(CheckKeyRequest(key="k"))
    for _ in range(2):
        with pytest.raises(InvalidArgumentError, match=field):
            asked.read(CheckKeyRequest(key="k", **{field: wrong}))


def test_no_credential_is_remembered() -> None:
    """Nor whence a check came, nor its id."""
    asked = Asked()
    credentials: tuple[dict[str, Any], ...] = ({"key": "S3CRET"}, {"authorization": "Bearer S3CRET"})
    for credential in credentials:
        asked.read(CheckKeyRequest(**credential, source_ip="203.0.113.7", request_id="r1", permissions=["forms.view"]))
    assert list(asked._remembered) == [CheckKeyRequest(permissions=["forms.view"]).SerializeToString()]
    assert "S3CRET" not in repr(asked._remembered)
    assert "203.0.113.7" not in repr(asked._remembered)


def test_what_is_remembered_is_bounded() -> None:
    """In number and size: a caller that asks something else every time fills no memory."""
    asked = Asked()
    for number in range(10_000):
        asked.read(CheckKeyRequest(key="k", resources=[f"forms/f{number}"]))
    assert 0 < len(asked._remembered) <= 4_096
    before = len(asked._remembered)
    asked.read(CheckKeyRequest(key="k", resources=[f"forms/{'f' * 60}"] * 100))
    asked.read(CheckKeyRequest(key="k", tags={"trace": "1"}))
    assert len(asked._remembered) == before
