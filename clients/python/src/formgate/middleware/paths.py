"""Paths: which are refused unseen, and the templates that rules have for them and for resources.

A rule is matched against the very text that the framework routes by, decoded once and not otherwise changed. Where two
readers might still see two paths in one text, it is refused: no framework, proxy or file system behind can read a path
that a rule did not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

# Empty and dotted segments, backslashes, control characters, what was no UTF-8, and dots and slashes still encoded.
_AMBIGUOUS = re.compile(r"//|/\.\.?(?:/|\Z)|[\x00-\x1f\x7f\\\ufffd]|%(?:2[ef]|5c)", re.IGNORECASE)
# What becomes a slash, a backslash or a NUL by decoding.
_AMBIGUOUS_RAW = re.compile(rb"%(?:2f|5c|00)", re.IGNORECASE)

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_.-]{1,64}"
_ID = re.compile(_SEGMENT, re.ASCII)
_RESOURCE = re.compile(rf"\*|{_SEGMENT}(?:/{_SEGMENT}){{0,31}}", re.ASCII)
_LONGEST_RESOURCE = 1_024

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)(:path)?\}", re.ASCII)
_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\}", re.ASCII)


def is_ambiguous(path: str, raw: bytes) -> bool:
    """Tell whether a decoded path, or its text on the wire without the query (empty: not known), is refused unseen."""
    return not path.startswith("/") or _AMBIGUOUS.search(path) is not None or _AMBIGUOUS_RAW.search(raw) is not None


def is_resource(text: str) -> bool:
    """Tell whether ``text`` is a path that a check may name."""
    return len(text) <= _LONGEST_RESOURCE and _RESOURCE.fullmatch(text) is not None


class PathTemplate:
    """Such as ``/forms/{form_id}/submissions``; ``{rest:path}`` as the last segment takes whatever follows.

    A placeholder takes one whole segment, never an empty one.
    """

    __slots__ = ("_bare", "_names", "_statics", "_tail", "names", "segments", "text")

    def __init__(self, text: str) -> None:
        """Read a template. Raises ValueError."""
        if is_ambiguous(text, b""):
            raise ValueError(f"path {text!r} must begin with / and have no empty or dotted segment")
        self.text = text
        self.segments: tuple[str | None, ...] = ()
        """The text of each segment, None for a placeholder; without the ``:path`` one."""
        self._tail = ""
        names: list[tuple[int, str]] = []
        *most, last = text[1:].split("/")
        for at, segment in enumerate((*most, last)):
            placeholder = _PLACEHOLDER.fullmatch(segment)
            if placeholder is None:
                if "{" in segment or "}" in segment:
                    raise ValueError(
                        f"path {text!r}: a placeholder is a whole segment, {{name}}, or {{name:path}} at the end"
                    )
                self.segments += (segment,)
            elif placeholder[2]:
                if at != len(most):
                    raise ValueError(f"path {text!r}: {{{placeholder[1]}:path}} can only be the last segment")
                self._tail = placeholder[1]
            else:
                names.append((at, placeholder[1]))
                self.segments += (None,)
        self._bare = self.segments[:-1] if self.segments[-1:] == ("",) else self.segments
        self._names = tuple(names)
        self._statics = tuple((at, segment) for at, segment in enumerate(self.segments) if segment is not None)
        self.names = frozenset(name for _, name in names) | ({self._tail} if self._tail else set())
        if len(self.names) != len(names) + bool(self._tail):
            raise ValueError(f"path {text!r} has a placeholder twice")

    @property
    def takes_the_rest(self) -> bool:
        """Whether it ends in ``{name:path}``."""
        return bool(self._tail)

    @property
    def first(self) -> str | None:
        """The text of the first segment; None: it may be any."""
        return self.segments[0] if self.segments else None

    def may_have(self, count: int) -> bool:
        """Tell whether paths of so many segments can match."""
        return count > len(self.segments) if self._tail else count == len(self.segments)

    def matches(self, segments: list[str]) -> bool:
        """Tell whether a path matches whose number of segments it ``may_have``."""
        for at, text in self._statics:
            if segments[at] != text:
                return False
        for at, _ in self._names:  # noqa: SIM110 - any() takes three times as long
            if not segments[at]:
                return False
        return True

    def values(self, segments: list[str]) -> dict[str, str]:
        """Return what each placeholder stands for in a path that matches."""
        found = {name: segments[at] for at, name in self._names}
        if self._tail:
            found[self._tail] = "/".join(segments[len(self.segments) :])
        return found

    def covers(self, other: PathTemplate) -> bool:
        """Tell whether every path that ``other`` matches is matched by this."""
        mine, others = self.segments, other.segments
        if self._tail:
            if len(others) < len(mine) or (len(others) == len(mine) and not other._tail):
                return False
        elif other._tail or len(others) != len(mine):
            return False
        return all(own == text or (own is None and text != "") for own, text in zip(mine, others, strict=False))

    def covers_but_for_a_slash(self, other: PathTemplate) -> bool:
        """Tell the same for whom a slash at the end of a path counts for nothing."""
        mine, others = self._bare, other._bare
        if len(others) < len(mine) or (not self._tail and (other._tail or len(others) != len(mine))):
            return False
        return all(own is None or own == text for own, text in zip(mine, others, strict=False))

    def meets(self, other: PathTemplate) -> bool:
        """Tell whether there is a path that both match."""
        mine, others = self.segments, other.segments
        if not self._tail and (len(others) > len(mine) or (other._tail and len(others) == len(mine))):
            return False
        if not other._tail and (len(mine) > len(others) or (self._tail and len(mine) == len(others))):
            return False
        if not self._tail and not other._tail and len(mine) != len(others):
            return False
        return all(
            own == text or (own is None and text != "") or (text is None and own != "")
            for own, text in zip(mine, others, strict=False)
        )


class ResourceTemplate(NamedTuple):
    """Such as ``forms/{form_id}``: the text between its placeholders, and their names."""

    texts: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> ResourceTemplate:
        """Read a template. Raises ValueError."""
        parts = _FIELD.split(text)
        if not is_resource(_FIELD.sub("x", text)):
            raise ValueError(f"resource {text!r} must be ids ([A-Za-z0-9_.-]) or {{placeholders}}, separated by /")
        return cls(tuple(parts[::2]), tuple(parts[1::2]))

    def fill(self, values: Mapping[str, str]) -> str:
        """Return the resource. Raises BadValueError where a value is none that a resource can have."""
        filled = [self.texts[0]]
        for name, text in zip(self.names, self.texts[1:], strict=True):
            value = values[name]
            if _ID.fullmatch(value) is None and not is_resource(value):
                raise BadValueError(name)
            filled += value, text
        resource = "".join(filled)
        if not is_resource(resource) or resource == "*":
            raise BadValueError(", ".join(self.names))
        return resource


class BadValueError(Exception):
    """A path or message names something that can not exist: its id is no id. Says the placeholder, not the value."""


def checked(resources: Iterable[str]) -> tuple[str, ...]:
    """Return resources that the application has made up itself. Raises BadValueError.

    None at all are no resources either: a check that names none may ask for no more than any good key.
    """
    given = (resources,) if isinstance(resources, str) else tuple(resources)
    if not given or not all(map(is_resource, given)):
        raise BadValueError("resources")
    return given
