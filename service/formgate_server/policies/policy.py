"""Reads policy files: TOML, validated whole before the first check is decided by them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from formgate.rules.grants import Catalogue, Level
from formgate.rules.reason import Reason
from formgate_server.core import calendar
from formgate_server.core.model import Environment
from formgate_server.core.policy import DenialTemplate, Plan, Policies, Policy

DEFAULT = "default"

_STATUSES = (
    {reason: 401 for reason in Reason if reason <= Reason.KEY_EXPIRED}
    | {reason: 403 for reason in Reason if Reason.KEY_EXPIRED < reason <= Reason.RESOURCE_NOT_ALLOWED}
    | {reason: 429 for reason in Reason if reason > Reason.RESOURCE_NOT_ALLOWED}
    | {Reason.TOO_MANY_INVALID_ATTEMPTS: 429}
)
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")
_PLACEHOLDERS = frozenset({"reason", "message", "retry_after"})

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]
Prefix = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,31}_$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
HeaderName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9!#$%&'*+.^_`|~-]+$")]
HeaderValue = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")]
LevelName = Literal["READ", "WRITE", "MANAGE"]
EnvironmentName = Literal["LIVE", "TEST"]


class PolicyError(Exception):
    """A policy file that can not be used; says the file and, where there is one, the field."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Permissions(BaseModel):
    """The catalogue: permission names with their levels, beside ``open``."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    __pydantic_extra__: dict[str, LevelName]
    open: bool = False


class _Plan(_File):
    time_zone: str

    @field_validator("time_zone")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in calendar.zone_names():
            message = f"{name!r} is not an IANA time zone"
            raise ValueError(message)
        return name


class _Denial(_File):
    status: Annotated[int, Field(ge=400, le=599)] | None = None
    headers: list[tuple[HeaderName, HeaderValue]] | None = Field(default=None, strict=False)
    body: str | None = None

    @field_validator("headers", "body")
    @classmethod
    def _known_placeholders(cls, value: object) -> object:
        unknown = set(_PLACEHOLDER.findall(str(value))) - _PLACEHOLDERS
        if unknown:
            message = f"unknown placeholder {{{min(unknown)}}}; there are {', '.join(sorted(_PLACEHOLDERS))}"
            raise ValueError(message)
        return value


class _Policy(_File):
    name: Name
    description: Text
    prefixes: Annotated[dict[EnvironmentName, Prefix], Field(min_length=1)]
    permissions: _Permissions
    levels: Annotated[dict[LevelName, Text], Field(min_length=1)]
    methods: dict[Annotated[str, StringConstraints(pattern=r"^[A-Z]{1,20}$")], LevelName] = Field(default_factory=dict)
    plans: Annotated[dict[Name, _Plan], Field(min_length=1)]
    denial: _Denial
    denials: dict[str, _Denial] = Field(default_factory=dict)
    messages: dict[str, Text]

    @field_validator("denials", "messages")
    @classmethod
    def _known_reasons(cls, by_reason: dict[str, object]) -> dict[str, object]:
        for name in by_reason:
            if name not in Reason.__members__ or name == Reason.OK.name:
                message = f"{name} is not a reason to deny"
                raise ValueError(message)
        return by_reason

    @field_validator("messages")
    @classmethod
    def _all_reasons(cls, messages: dict[str, str]) -> dict[str, str]:
        missing = [reason.name for reason in Reason if reason is not Reason.OK and reason.name not in messages]
        if missing:
            message = f"{missing[0]} has none"
            raise ValueError(message)
        return messages

    def policy(self) -> Policy:
        """Return the policy as a value."""
        levels = {name: Level[level] for name, level in self.permissions.__pydantic_extra__.items()}
        return Policy(
            name=self.name,
            description=self.description,
            prefixes={Environment[environment]: prefix for environment, prefix in self.prefixes.items()},
            plans={name: Plan(name, plan.time_zone) for name, plan in self.plans.items()},
            catalogue=Catalogue(levels, is_open=self.permissions.open),
            levels={Level[name]: title for name, title in self.levels.items()},
            methods={method: Level[level] for method, level in self.methods.items()},
            api_groups=None,
            denials={reason: self._denial(reason) for reason in Reason if reason is not Reason.OK},
        )

    def _denial(self, reason: Reason) -> DenialTemplate:
        special, usual = self.denials.get(reason.name, _Denial()), self.denial
        headers = special.headers if special.headers is not None else usual.headers
        body = special.body if special.body is not None else usual.body
        status = special.status or usual.status or _STATUSES[reason]
        return DenialTemplate(status, self.messages[reason.name], tuple(headers or ()), body or "")


def read(path: Path) -> Policy:
    """Read a policy file. Raises PolicyError saying the file, and the line or field, where it is not valid."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: can not be read: {error}"
        raise PolicyError(message) from error
    return _parse(text, str(path))


def _parse(text: str, source: str) -> Policy:
    try:
        return _Policy.model_validate_json(json.dumps(tomllib.loads(text))).policy()
    except tomllib.TOMLDecodeError as error:
        message = f"{source}: {error}"
        raise PolicyError(message) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        field = ".".join(map(str, first["loc"]))
        message = f"{source}: {field}: {first['msg']}"
        raise PolicyError(message) from error
    except TypeError as error:  # TOML's dates and times have no JSON: no field of ours is one
        message = f"{source}: a date or time stands where none is expected"
        raise PolicyError(message) from error


def load(folder: Path | None = None) -> Policies:
    """Read the bundled policies and those in ``folder``. Raises PolicyError, also where two share a name or prefix."""
    bundled = [file for file in resources.files(__package__).iterdir() if file.name.endswith(".toml")]
    policies = [_parse(file.read_text(encoding="utf-8"), file.name) for file in sorted(bundled, key=lambda f: f.name)]
    if folder is not None:
        if not folder.is_dir():
            message = f"{folder}: is not a folder; FORMGATE_POLICY_DIR must name one"
            raise PolicyError(message)
        policies += [read(path) for path in sorted(folder.glob("*.toml"))]
    return _together(policies)


def _together(policies: Iterable[Policy]) -> Policies:
    by_name: dict[str, Policy] = {}
    by_prefix: dict[str, str] = {}
    for policy in policies:
        if policy.name in by_name:
            message = f"two policies are named {policy.name}"
            raise PolicyError(message)
        by_name[policy.name] = policy
        for prefix in policy.prefixes.values():
            if prefix in by_prefix:
                message = f"the policies {by_prefix[prefix]} and {policy.name} have the same prefix {prefix}"
                raise PolicyError(message)
            by_prefix[prefix] = policy.name
    return Policies(by_name, DEFAULT)
