"""Which requests need what: a table of rules, read from the top. What no rule matches is denied.

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

from formgate.middleware.paths import PathTemplate, ResourceTemplate
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
    """What a check asks for, as in ``Client.check``."""

    permissions: Iterable[str] = ()
    """All of them. None: what the policy says that the HTTP method needs."""
    resources: Resources = ()
    """All the paths of the one thing asked for, with placeholders: a grant that covers one of them suffices."""
    only_authenticate: bool = False
    """Any good key will do, whatever it may do; with resources, one that covers any of them."""
    api_group: str = ""
    environment: Environment | str | None = None
    cost: int = 1
    policy: str = ""
    strict: bool = False
    """The service itself is to be asked, whatever a lease would allow."""
    templates: tuple[ResourceTemplate, ...] = field(init=False, repr=False, compare=False)
    asked: Mapping[str, Any] = field(init=False, repr=False, compare=False)
    """The arguments of ``Client.check`` that are always the same."""

    def __post_init__(self) -> None:
        """Raises ValueError for what can not be meant."""
        permissions = (self.permissions,) if isinstance(self.permissions, str) else tuple(self.permissions)
        if self.only_authenticate and permissions:
            raise ValueError("permissions, and only_authenticate: one of them")
        given = self.resources
        texts = () if callable(given) else (given,) if isinstance(given, str) else tuple(given)
        object.__setattr__(self, "permissions", permissions)
        object.__setattr__(self, "templates", tuple(map(ResourceTemplate.read, texts)))
        asked: dict[str, Any] = {"permissions": permissions}
        for name in ("api_group", "environment", "policy", "strict"):
            if value := getattr(self, name):
                asked[name] = value
        if self.cost != 1:
            asked["cost"] = self.cost
        object.__setattr__(self, "asked", asked)

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError where a resource has a placeholder that the path has not."""
        for template in self.templates:
            if unknown := set(template.names).difference(names):
                raise ValueError(f"no placeholder of the path is called {', '.join(sorted(unknown))}")


@dataclass(frozen=True)
class _Line:
    """A line of the table."""

    method: str | Iterable[str]
    """Such as ``GET``, which is HEAD's too; several; ``*``: any; ``WEBSOCKET``: a WebSocket's handshake."""
    path: str
    """As the application's own routes, from its root; ``{name}`` is a segment, ``{rest:path}`` all that follows."""


@dataclass(frozen=True)
class Rule(_Line, Need):
    """Such a request needs a key that may do that."""


@dataclass(frozen=True)
class Open(_Line):
    """Such a request needs no key; nobody is asked."""


@dataclass(frozen=True)
class ByRoute(_Line):
    """The route itself asks, by ``requires``; one that answers without having asked is not heard."""


AnyRule: TypeAlias = Rule | Open | ByRoute


class Found(NamedTuple):
    """The rule for a request, and what its placeholders stand for."""

    rule: AnyRule
    values: dict[str, str]


class _Compiled(NamedTuple):
    rule: AnyRule
    methods: frozenset[str]
    path: PathTemplate

    def both(self, other: _Compiled) -> bool:
        """Tell whether there is a method that both are for."""
        return ANY in self.methods or ANY in other.methods or bool(self.methods & other.methods)

    def covers(self, other: _Compiled) -> bool:
        return (ANY in self.methods or other.methods <= self.methods) and self.path.covers(other.path)


class Rules:
    """The table, compiled: for each method and number of segments, the rules that may match, in order."""

    __slots__ = ("_by_method", "_others")

    def __init__(self, rules: Iterable[AnyRule]) -> None:
        """Raises ValueError for a table that can not be meant, or whose order would matter where nobody looks."""
        compiled = [_compile(rule) for rule in rules]
        for at, later in enumerate(compiled):
            _check(compiled[:at], later)
        longest = max((len(one.path.segments) for one in compiled), default=0) + 1
        methods = {method for one in compiled for method in one.methods} - {ANY}
        self._by_method = {method: _by_length(compiled, method, longest) for method in methods}
        self._others = _by_length(compiled, ANY, longest)

    def find(self, method: str, path: str) -> Found | None:
        """Return the first rule for a path that is not ambiguous; None: there is none, and the request is denied."""
        by_length = self._by_method.get(method, self._others)
        segments = path[1:].split("/")
        for one in by_length[min(len(segments), len(by_length) - 1)]:
            values = one.path.match(segments)
            if values is not None:
                return Found(one.rule, values)
        return None


def _compile(rule: AnyRule) -> _Compiled:
    given = (rule.method,) if isinstance(rule.method, str) else tuple(rule.method)
    methods = {method.upper() for method in given}
    if not methods or not all(methods):
        raise ValueError(f"a rule for {rule.path!r} has no method")
    path = PathTemplate(rule.path)
    if isinstance(rule, Rule):
        try:
            rule.check_names(path.names)
        except ValueError as error:
            raise ValueError(f"path {rule.path!r}: {error}") from None
    return _Compiled(rule, frozenset(methods | ({"HEAD"} if "GET" in methods else set())), path)


def _check(earlier: list[_Compiled], later: _Compiled) -> None:
    """Refuse a rule that no request reaches, and two of which a framework may take the other one."""
    for one in earlier:
        if one.covers(later):
            raise ValueError(f"the rule for {later.path.text!r} is never used: {one.path.text!r} is above it")
        if one.both(later) and one.path.meets(later.path) and not later.path.covers(one.path):
            raise ValueError(
                f"{one.path.text!r} and {later.path.text!r} match the same paths, and neither is the narrower one"
            )


def _by_length(compiled: list[_Compiled], method: str, longest: int) -> tuple[tuple[_Compiled, ...], ...]:
    fitting = [one for one in compiled if ANY in one.methods or method in one.methods]
    return tuple(tuple(one for one in fitting if _may_have(one.path, count)) for count in range(longest + 1))


def _may_have(path: PathTemplate, count: int) -> bool:
    return count > len(path.segments) if path.takes_the_rest else count == len(path.segments)
