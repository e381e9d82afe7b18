"""A lease as its holder sees it: the rules that came with it, and what may still be admitted under it."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeAlias

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from formgate.answers import read_key, read_limit
from formgate.asking import several
from formgate.errors import BrokenAnswerError
from formgate.rules.addresses import AddressRules, parse_address
from formgate.rules.grants import Catalogue, Grant, Grants, Level
from formgate.rules.reason import Reason
from formgate.rules.standing import Standing, Wanted, denial
from formgate.v1 import authorization_pb2 as pb
from formgate.v1 import resources_pb2
from formgate.verdict import Environment, Source, Verdict

Shape: TypeAlias = tuple[Sequence[str], Sequence[str], str, "Environment | str | None", str, str, str]
"""What a check wants, but for its key and cost: permissions, resources, api_group, environment, http_method,
source_ip, policy."""

_RENEWED_AT: Final = 0.75
"""After so much of its time the next lease is asked for."""
_MOST_SHAPES: Final = 4_096
_MOST: Final = 100
_LONGEST_RESOURCE: Final = 1_024
_LONGEST_PERMISSION: Final = 256
_IDENTIFIER: Final = re.compile(r"(?!\.{1,2}\Z)[A-Za-z0-9_.-]{1,64}", re.ASCII)
_SEGMENT: Final = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]{1,64}"
_PATH: Final = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT}){{0,31}}", re.ASCII)
_PERMISSION: Final = re.compile(r"[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+", re.ASCII)
_METHOD: Final = re.compile(r"[A-Z]{1,20}", re.ASCII)


class LeasedRules:
    """By what a key's checks are decided, as the service compiles it."""

    def __init__(self, rules_id: bytes, message: pb.LeaseRules) -> None:
        """Raises BrokenAnswerError for rules that can not be understood: then nothing is decided by them."""
        if _says_more(message):
            raise BrokenAnswerError("the lease has rules that are not known here")
        try:
            self.key = read_key(message.key)
            self._standing = _standing(message)
            self._methods = {name: Level(level) for name, level in message.http_methods.items()}
        except (KeyError, ValueError, OverflowError):
            raise BrokenAnswerError("the lease has rules that are not known here") from None
        if not (self.key.key_id and self.key.account_id and message.policy):
            raise BrokenAnswerError("the lease does not say whose it is")
        self.rules_id = rules_id
        self._policy = message.policy

    def reason(self, shape: Shape) -> Reason | None:
        """Return the reason of the verdict, limits aside; None: that is for the service to say, bad calls too."""
        permissions, resources, api_group, environment, http_method, source_ip, policy = shape
        permissions, resources = several(permissions), several(resources)
        wanted_environment = _environment(environment)
        if (
            wanted_environment is None
            or policy not in {"", self._policy}
            or not _are_valid(permissions, resources, api_group, http_method, source_ip)
        ):
            return None
        level: Level | None = Level.UNSPECIFIED
        if not permissions and http_method and self._methods:
            level = self._methods.get(http_method) or self._methods.get("*")
        wanted = Wanted(permissions, level, resources, api_group, wanted_environment, source_ip)
        # The key's own end is not looked at: its lease ends before, by a clock that never jumps.
        return denial(self._standing, wanted, 0) or Reason.OK


def _says_more(message: Message) -> bool:
    """Tell whether there is a field, at any depth, of a later contract: it may be what restricts."""
    if len(UnknownFieldSet(message)):
        return True
    return any(
        isinstance(each, Message) and _says_more(each)
        for field, value in message.ListFields()
        if field.type == FieldDescriptor.TYPE_MESSAGE
        for each in ((value,) if isinstance(value, Message) else value)  # of a map: its keys, which are texts
    )


def _standing(message: pb.LeaseRules) -> Standing:
    levels = {name: Level(level) for name, level in message.permissions.items()}
    catalogue = Catalogue(levels, is_open=message.open_catalogue)
    return Standing(
        state=Reason.OK,
        expire_time=None,
        environment=int(message.key.environment),
        addresses=AddressRules(message.ip_rules) if message.ip_rules else None,
        api_groups=frozenset(message.api_groups),
        grants=Grants(map(_grant, message.grants), catalogue),
        ceiling=Grants(map(_grant, message.ceiling), catalogue) if message.has_ceiling else None,
    )


def _grant(message: resources_pb2.Grant) -> Grant:
    return Grant(message.resource, tuple(message.permissions), Level(message.level))


def _environment(given: Environment | str | None) -> int | None:
    """Return the number of an environment, 0 for any; None: there is no such one."""
    if given is None or given == "":
        return 0
    if isinstance(given, str):
        return Environment.__members__.get(given.upper())
    return int(given) if given in Environment.__members__.values() else None


def _are_valid(
    permissions: tuple[str, ...], resources: tuple[str, ...], api_group: str, http_method: str, source_ip: str
) -> bool:
    """Tell whether the service surely takes these: what it might refuse it is to refuse itself."""
    if len(permissions) > _MOST or len(resources) > _MOST:
        return False
    if not all(len(each) <= _LONGEST_PERMISSION and _PERMISSION.fullmatch(each) for each in permissions):
        return False
    if not all(each == "*" or (len(each) <= _LONGEST_RESOURCE and _PATH.fullmatch(each)) for each in resources):
        return False
    if (api_group and not _IDENTIFIER.fullmatch(api_group)) or (http_method and not _METHOD.fullmatch(http_method)):
        return False
    if source_ip:
        try:
            parse_address(source_ip)
        except ValueError:
            return False
    return True


class Lease:
    """What may be decided until ``end`` (by ``formgate.clock``). For many threads."""

    __slots__ = (
        "_lock",
        "began",
        "denials",
        "end",
        "epoch",
        "lease_id",
        "reasons",
        "renew",
        "rules",
        "spent",
        "units",
        "unlimited",
        "verdict",
    )

    def __init__(self, message: pb.Lease, rules: LeasedRules, began: float) -> None:
        """Take a lease that was asked for at ``began``. Raises BrokenAnswerError for one that makes no sense."""
        seconds = message.duration.seconds + message.duration.nanos / 1e9
        if not 0 < seconds <= _LONGEST_SECONDS or message.units < 1 or not message.lease_id or message.epoch < 1:
            raise BrokenAnswerError("the lease makes no sense")
        if _says_more(message):
            raise BrokenAnswerError("the lease says what is not known here")
        self._lock = threading.Lock()
        self.reasons: dict[Shape, Reason | None] = {}
        self.denials: dict[Shape, Verdict] = {}
        self.began = began
        self.end = began + seconds
        self.renew = began + seconds * _RENEWED_AT
        """From when on a check has more to do than to be decided; never after ``end``."""
        self.epoch = message.epoch
        self.lease_id = message.lease_id
        self.rules = rules
        self.spent = 0
        self.units = message.units
        self.unlimited = message.unlimited
        try:
            limits = tuple([read_limit(limit) for limit in message.limits])
        except (KeyError, ValueError, OverflowError):
            raise BrokenAnswerError("the lease has a value that is unknown or out of range") from None
        self.verdict = Verdict(
            allowed=True,
            reason=Reason.OK,
            message="",
            http_status=200,
            key=rules.key,
            limits=limits,
            epoch=message.epoch,
            source=Source.LEASE,
        )

    def take(self, cost: int) -> bool:
        """Charge ``cost``; False: it does not fit."""
        with self._lock:
            if self.spent + cost > self.units and not self.unlimited:
                return False
            self.spent += cost
        return True

    def reason(self, shape: Shape) -> Reason | None:
        """Return the reason of the verdict, limits aside; None: that is for the service to say."""
        if len(self.reasons) >= _MOST_SHAPES:
            self.reasons.clear()
        reason = self.reasons[shape] = self.rules.reason(shape)
        return reason

    def learn(self, shape: Shape, verdict: Verdict) -> None:
        """Keep the service's words for a denial, where it decided as these rules do."""
        if (
            verdict.epoch == self.epoch
            and not verdict.degraded
            and verdict.reason is not None
            and Reason.OK < verdict.reason < Reason.RATE_LIMITED
            and len(self.denials) < _MOST_SHAPES
            and self.reason(shape) is verdict.reason
        ):
            self.denials[shape] = replace(verdict, source=Source.LEASE)

    @property
    def is_used_up(self) -> bool:
        """Whether nothing may be admitted any more."""
        return not self.unlimited and self.spent >= self.units

    def finish(self) -> int:
        """End it for all threads, and return how many units are left."""
        with self._lock:
            self.end = self.renew = 0.0
            left = max(0, self.units - self.spent)
            self.units, self.unlimited = 0, False
            return left


_LONGEST_SECONDS: Final = 60.0
