"""One and the same value for all that are equal: most keys of a platform have the same few grants, limits and notes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import TypeVar, cast

T = TypeVar("T", bound=Hashable)

_MOST = 2_000  # different ones, of each kind: large ones may not outlive in number the keys that had them


def shared(value: T) -> T:
    """Return the first value that was equal to this frozen one."""
    return cast("T", _first(value))


@lru_cache(maxsize=_MOST, typed=True)
def _first(value: Hashable) -> Hashable:
    return value


def shared_mapping(value: Mapping[str, str]) -> Mapping[str, str]:
    """Return the first mapping that was equal to this one; nobody may change it."""
    return _mapping(tuple(value.items()))


@lru_cache(maxsize=_MOST)
def _mapping(items: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    return dict(items)
