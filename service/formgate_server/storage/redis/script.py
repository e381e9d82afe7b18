"""A Lua script that Redis runs as one atomic step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Script:
    """A script: ``name`` is for people, Redis knows it by its ``sha1``."""

    name: str
    source: str
    changed: Callable[[Any], bool] = lambda _: True
    """Tells by a reply whether replicas must have what the script has done before that counts."""

    @cached_property
    def sha1(self) -> str:
        """The name that EVALSHA takes: 40 hex digits."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
