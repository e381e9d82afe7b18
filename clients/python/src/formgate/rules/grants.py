"""What a key may do: permissions and levels, granted on resources.

A resource is a path. A grant covers its resource and all below it by whole segments; ``*`` covers all but
``organization``, which is granted by its name only. Grants add up.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache

from formgate.rules.reason import Reason

EVERYTHING = "*"
ORGANIZATION = "organization"

_NOUN_VERB = re.compile(r"[a-z][a-z0-9_]{0,63}(\.[a-z][a-z0-9_]{0,63}){1,3}", re.ASCII)


class Level(IntEnum):
    """How much a grant allows; each holds those before it. Numbered as in ``formgate.v1.Level``."""

    UNSPECIFIED = 0
    READ = 1
    WRITE = 2
    MANAGE = 3


@dataclass(frozen=True, slots=True)
class Grant:
    """A right on a resource and all below it: permission names, groups (``forms.*``) or ``*``, and/or a level."""

    resource: str
    permissions: tuple[str, ...] = ()
    level: Level = Level.UNSPECIFIED


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The permissions that there are, each with the lowest level that holds it (UNSPECIFIED: no level does).

    An open catalogue knows any ``noun.verb`` besides.
    """

    levels: Mapping[str, Level] = field(default_factory=dict, hash=False)
    is_open: bool = False

    def knows(self, permission: str) -> bool:
        """Tell whether ``permission`` is one that a check may ask for."""
        return permission in self.levels or (self.is_open and _NOUN_VERB.fullmatch(permission) is not None)

    def knows_pattern(self, pattern: str) -> bool:
        """Tell whether a grant may name ``pattern``: a permission, a group of some (``forms.*``), or ``*``."""
        if pattern == EVERYTHING or self.knows(pattern):
            return True
        if not pattern.endswith(".*"):
            return False
        group = pattern[:-1]
        if any(name.startswith(group) for name in self.levels):
            return True
        return self.is_open and _NOUN_VERB.fullmatch(group + "x") is not None

    def up_to(self, level: Level) -> frozenset[str]:
        """Return the permissions that ``level`` holds."""
        return frozenset(name for name, needs in self.levels.items() if needs and needs <= level)


@dataclass(frozen=True, slots=True)
class Rights:
    """What the grants on one resource hold together."""

    names: frozenset[str] = frozenset()
    groups: tuple[str, ...] = ()  # "forms.": str.startswith takes the whole tuple at once
    everything: bool = False
    level: Level = Level.UNSPECIFIED

    def hold(self, permission: str) -> bool:
        """Tell whether ``permission``, one of the catalogue, is held."""
        return self.everything or permission in self.names or permission.startswith(self.groups)

    def reach(self, level: Level) -> bool:
        """Tell whether ``level`` is held; permission ``*`` holds every level."""
        return self.everything or self.level >= level


def rights_of(grants: Collection[Grant], catalogue: Catalogue) -> Rights:
    """Return what the grants hold together, of what the catalogue knows by now."""
    named = {name for grant in grants for name in grant.permissions}
    level = max((grant.level for grant in grants), default=Level.UNSPECIFIED)
    return Rights(
        frozenset(filter(catalogue.knows, named)) | catalogue.up_to(level),
        tuple(sorted(name[:-1] for name in named if name.endswith(".*"))),
        EVERYTHING in named,
        level,
    )


@lru_cache(maxsize=10_000)
def _shared(rights: Rights) -> Rights:
    """Return one and the same value for all that are equal: most keys of a platform have the same few rights."""
    return rights


@lru_cache(maxsize=1_024)  # a service asks about the same few again and again
def ancestors(resource: str) -> tuple[str, ...]:
    """Return the resources a grant on which covers ``resource``: itself, those above it, and ``*`` where it counts."""
    paths = [resource]
    path, slash, _ = resource.rpartition("/")
    while slash:
        paths.append(path)
        path, slash, _ = path.rpartition("/")
    if paths[-1] != ORGANIZATION and resource != EVERYTHING:
        paths.append(EVERYTHING)
    return tuple(paths)


class Grants:
    """A key's grants, compiled: a question costs the depth of the resource, however many grants there are."""

    __slots__ = ("_anywhere", "_by_resource", "_catalogue")

    def __init__(self, grants: Iterable[Grant], catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        granted: dict[str, list[Grant]] = {}
        for grant in grants:
            granted.setdefault(grant.resource, []).append(grant)
        self._by_resource = {on: _shared(rights_of(here, catalogue)) for on, here in granted.items()}
        self._anywhere = _shared(rights_of([grant for here in granted.values() for grant in here], catalogue))

    def denial(self, permissions: Collection[str], level: Level, resources: Collection[str]) -> Reason | None:
        """Say why these permissions and this level are not granted on any of these resources; None: they are.

        Each permission, and the level, must be held by a grant that covers at least one of the resources; without
        resources only grants on ``*`` count. Without permissions and level, a grant must cover some resource, where any
        is given. A permission that the catalogue does not know is held by nobody.
        """
        covering = self._covering(resources or (EVERYTHING,))
        if not permissions and not level:
            return Reason.RESOURCE_NOT_ALLOWED if resources and not covering else None
        anywhere = self._anywhere
        if level and not anywhere.reach(level):
            return Reason.PERMISSION_DENIED
        for permission in permissions:  # what the grants name is known: see rights_of
            if permission not in anywhere.names and not (
                anywhere.hold(permission) and self._catalogue.knows(permission)
            ):
                return Reason.PERMISSION_DENIED
        if level and not any(rights.reach(level) for rights in covering):
            return Reason.RESOURCE_NOT_ALLOWED
        for permission in permissions:
            for rights in covering:
                if rights.hold(permission):
                    break
            else:
                return Reason.RESOURCE_NOT_ALLOWED
        return None

    def _covering(self, resources: Iterable[str]) -> list[Rights]:
        """Return the rights of every grant that covers one of the resources; some perhaps twice."""
        granted = self._by_resource
        if not granted:
            return []
        return [granted[path] for each in resources for path in ancestors(each) if path in granted]
