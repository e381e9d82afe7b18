"""Which requests need what: a table of rules, narrower paths above wider ones. What no rule matches is denied.

::

    rules = [
        Open("GET", "/health"),
        Rule("GET", "/forms/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"]),
        Rule("DELETE", "/forms/{form_id}", permissions=["forms.delete"], resources=["forms/{form_id}"]),
    ]
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from formgate.fallback import level_named
from formgate.middleware.paths import PathTemplate, ResourceTemplate
from formgate.rules.grants import Level
from formgate.verdict import Environment

ANY = "*"
WEBSOCKET = "WEBSOCKET"
"""The method that stands for a WebSocket's handshake."""

Values: TypeAlias = Mapping[str, str]
"""What each placeholder of a path stands for."""

Resources: TypeAlias = Iterable[str] | Callable[[Values], Iterable[str]] | Callable[[Values], Awaitable[Iterable[str]]]
"""Templates, or a function that is given the placeholders' values; only ASGI takes an ``async`` one."""


@dataclass(frozen=True, kw_only=True)
class Need:
    """What a check asks for, as in ``Client.check``: permissions, or in so many words that none is needed."""

    permissions: Iterable[str] = ()
    """All of them."""
    resources: Resources = ()
    """All the paths of the one thing asked for, with placeholders: a grant that covers one of them suffices."""
    only_authenticate: bool = False
    """Any good key will do, whatever it may do; with resources, one that covers any of them."""
    by_method: bool = False
    """What the policy says that the HTTP method needs. Where it says nothing of methods, any good key will do!"""
    api_group: str = ""
    environment: Environment | str | None = None
    cost: int = 1
    policy: str = ""
    strict: bool = False
    """The service itself is to be asked, whatever a lease would allow."""
    level: Level | str | None = None
    """How much the request does, for the client's fail mode. None: as its HTTP method says, else the most."""
    templates: tuple[ResourceTemplate, ...] = field(init=False, repr=False, compare=False)
    asked: Mapping[str, Any] = field(init=False, repr=False, compare=False)
    """The arguments of ``Client.check`` that are always the same."""

    def __post_init__(self) -> None:
        """Raises ValueError for what can not be meant."""
        permissions = (self.permissions,) if isinstance(self.permissions, str) else tuple(self.permissions)
        if sum(map(bool, (permissions, self.only_authenticate, self.by_method))) != 1:
            raise ValueError("permissions, only_authenticate or by_method: just one of them")
        given = self.resources
        texts = () if callable(given) else (given,) if isinstance(given, str) else tuple(given)
        self._check_values()
        object.__setattr__(self, "permissions", permissions)
        object.__setattr__(self, "templates", tuple(map(ResourceTemplate.read, texts)))
        asked: dict[str, Any] = {"permissions": permissions}
        for name in ("api_group", "environment", "policy", "strict", "level"):
            if value := getattr(self, name):
                asked[name] = value
        if self.cost != 1:
            asked["cost"] = self.cost
        object.__setattr__(self, "asked", asked)

    def _check_values(self) -> None:
        """Raise ValueError for what a client would refuse at each request, or an outage bring to light."""
        if self.level is not None:
            level_named(self.level)
        given = self.environment
        named = given.upper() if isinstance(given, str) else given
        if named not in (None, "", *Environment, *Environment.__members__):
            raise ValueError(f"{given!r} is no environment: live or test")
        if type(self.cost) is not int or self.cost < 0:
            raise ValueError(f"cost {self.cost!r} is no whole number from 0 on")

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError where a resource has a placeholder that the path has not."""
        for template in self.templates:
            if unknown := set(template.names).difference(names):
                raise ValueError(f"no placeholder of the path is called {', '.join(sorted(unknown))}")


@dataclass(frozen=True)
class Line:
    """A line of the table: a ``Rule``, ``Open`` or ``ByRoute``."""

    method: str | Iterable[str]
    """Such as ``GET``, which is HEAD's too; several; ``*``: any; ``WEBSOCKET``: a WebSocket's handshake."""
    path: str
    """As the application's own routes, from its root; ``{name}`` is a segment, ``{rest:path}`` all that follows."""


@dataclass(frozen=True)
class Rule(Line, Need):
    """Such a request needs a key that may do that."""

    def __post_init__(self) -> None:
        """Raises ValueError for what can not be meant."""
        super().__post_init__()
        if self.by_method and WEBSOCKET in _methods(self):
            raise ValueError(f"a rule for {self.path!r}: no policy says what a WebSocket needs; say it by permissions")


@dataclass(frozen=True)
class Open(Line):
    """Such a request needs no key; nobody is asked."""


@dataclass(frozen=True)
class ByRoute(Line):
    """The route itself asks, by ``requires``; one that answers without having asked is not heard."""


class Found(NamedTuple):
    """The rule for a request, and what its placeholders stand for."""

    rule: Line
    values: dict[str, str]


class _Path:
    """All rules for the same paths, by method."""

    __slots__ = ("by_method", "template")

    def __init__(self, template: PathTemplate) -> None:
        self.template = template
        self.by_method: dict[str, tuple[Line, PathTemplate]] = {}

    def add(self, rule: Line, template: PathTemplate) -> None:
        """Take a rule in, whose placeholders may have other names. Raises ValueError where it is never used."""
        methods = _methods(rule)
        new = [method for method in methods if method not in self.by_method and ANY not in self.by_method]
        if not new:
            raise ValueError(f"the rule for {rule.method!r} of {rule.path!r} is never used: there is one above it")
        for method in new:
            self.by_method[method] = rule, template


class Rules:
    """The table, compiled: for each number of segments and each first one, the paths that may match, in order.

    The first path that matches decides, also where it has no rule for the method: a framework may route all methods of
    a path to the same code, and a rule for a wider path was not made for that. For the same reason a rule does not
    decide a path where a narrower one decides the same path but for a slash at its end.
    """

    __slots__ = ("_by_length",)

    def __init__(self, rules: Iterable[Line]) -> None:
        """Raises ValueError for a table that can not be meant, or of which the framework might take another line."""
        paths: dict[tuple[tuple[str | None, ...], bool], _Path] = {}
        for rule in rules:
            if not isinstance(rule, Rule | Open | ByRoute):
                raise TypeError(f"a rule is a Rule, Open or ByRoute, not {rule!r}")
            template = PathTemplate(rule.path)
            if isinstance(rule, Rule):
                _check_names(rule, template)
            shape = template.segments, template.takes_the_rest
            if shape not in paths:
                _check_order(paths.values(), template)
                paths[shape] = _Path(template)
            paths[shape].add(rule, template)
        longest = max((len(path.template.segments) for path in paths.values()), default=0) + 1
        self._by_length = tuple(
            _by_first([path for path in paths.values() if path.template.may_have(count)])
            for count in range(longest + 1)
        )

    def find(self, method: str, path: str) -> Found | None:
        """Return the rule for a path that is not ambiguous; None: there is none, and the request is denied."""
        segments = path[1:].split("/")
        one = self._first(segments)
        if one is None:
            return None
        if len(path) > 1:
            other = self._first([*segments, ""] if segments[-1] else segments[:-1])
            if other is not None and other is not one and not other.template.covers_but_for_a_slash(one.template):
                return None
        found = one.by_method.get(method) or one.by_method.get(ANY)
        if found is None:
            return None
        rule, template = found
        return Found(rule, template.values(segments))

    def _first(self, segments: list[str]) -> _Path | None:
        by_first = self._by_length[min(len(segments), len(self._by_length) - 1)]
        for one in by_first.get(segments[0]) or by_first[None]:
            if one.template.matches(segments):
                return one
        return None


def _by_first(paths: list[_Path]) -> dict[str | None, tuple[_Path, ...]]:
    """Return the paths that may match by their first segment; None: whatever it is."""
    firsts = {path.template.first for path in paths} | {None}
    return {
        first: tuple(path for path in paths if path.template.first is None or path.template.first == first)
        for first in firsts
    }


def _methods(rule: Line) -> frozenset[str]:
    given = (rule.method,) if isinstance(rule.method, str) else tuple(rule.method)
    methods = {method.upper() for method in given}
    if not methods or not all(methods):
        raise ValueError(f"a rule for {rule.path!r} has no method")
    return frozenset(methods | ({"HEAD"} if "GET" in methods else set()))


def _check_names(rule: Rule, template: PathTemplate) -> None:
    try:
        rule.check_names(template.names)
    except ValueError as error:
        raise ValueError(f"path {rule.path!r}: {error}") from None


def _check_order(above: Iterable[_Path], path: PathTemplate) -> None:
    """Refuse a path that is never reached, and two of which a framework may take the other one."""
    for one in above:
        if one.template.covers(path):
            raise ValueError(f"the rule for {path.text!r} is never used: put it above that for {one.template.text!r}")
        if one.template.meets(path) and not path.covers(one.template):
            raise ValueError(
                f"{one.template.text!r} and {path.text!r} match the same paths, and neither is the narrower one"
            )
