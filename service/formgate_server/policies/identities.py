"""Reads the identities file: which names of client certificates may do what without a token."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from formgate_server.core.identities import Identities
from formgate_server.core.model import Caller, ServiceRole
from formgate_server.policies.toml_file import FileModel, Source, TomlError

_PREFIX = "cert."  # in the audit trail, where the ids of tokens stand
_DNS = re.compile(r"([a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", re.ASCII)
# https://github.com/spiffe/spiffe/blob/main/standards/SPIFFE-ID.md: no query, no empty, "." or ".." segment.
_SPIFFE = re.compile(r"spiffe://[a-z0-9._-]{1,255}(/(?!\.{1,2}(/|$))[A-Za-z0-9._-]+)+", re.ASCII)
_LONGEST = 2_048


class IdentitiesError(TomlError):
    """An identities file that can not be used; says the file and, where they are known, the line and the field."""


class _Identity(FileModel):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,58}$")]
    spiffe: str | None = None
    dns: str | None = None
    role: Literal["checker", "manager", "auditor"]
    account_id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")] | None = None
    policy: str | None = None

    @field_validator("spiffe")
    @classmethod
    def _a_spiffe_id(cls, name: str | None) -> str | None:
        if name is not None and (len(name) > _LONGEST or not _SPIFFE.fullmatch(name)):
            message = "is no SPIFFE id of a workload, such as spiffe://example.org/ns/shop/sa/gateway"
            raise ValueError(message)
        return name

    @field_validator("dns")
    @classmethod
    def _a_dns_name(cls, name: str | None) -> str | None:
        if name is not None and not _DNS.fullmatch(name):
            message = "is no DNS name in lower case; there are no wildcards"
            raise ValueError(message)
        return name

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if (self.spiffe is None) is (self.dns is None):
            message = "needs one of spiffe and dns"
            raise ValueError(message)
        return self

    @property
    def key(self) -> str:
        """The name as ``Identities`` has it."""
        return self.spiffe or f"dns:{self.dns}"

    def caller(self) -> Caller:
        """Return who calls with such a certificate."""
        return Caller(_PREFIX + self.name, ServiceRole[self.role.upper()], self.account_id or "", self.policy or "")


class _File(FileModel):
    identity: list[_Identity] = Field(default_factory=list, max_length=1_000)


def parse(path: Path, content: bytes, policies: Collection[str]) -> Identities:
    """Return what an identities file says; its policies must be among these. Raises IdentitiesError."""
    try:
        source = Source(str(path), content.decode(), IdentitiesError)
    except UnicodeDecodeError as error:
        message = f"{path}: is not UTF-8"
        raise IdentitiesError(message) from error
    by_name: dict[str, Caller] = {}
    names: set[str] = set()
    for number, identity in enumerate(source.parse(_File).identity):
        at = ("identity", number)
        if identity.name in names:
            raise source.error_at((*at, "name"), f"there is another identity named {identity.name}")
        if identity.key in by_name:
            raise source.error_at(at, f"there is another identity for {identity.key}")
        if identity.policy is not None and identity.policy not in policies:
            raise source.error_at((*at, "policy"), f"there is no policy {identity.policy}")
        names.add(identity.name)
        by_name[identity.key] = identity.caller()
    return Identities(by_name)
