"""A Lua script that Redis runs as one atomic step."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Script:
    """A script: ``name`` is for people, Redis knows it by its ``sha1``."""

    name: str
    source: str

    @cached_property
    def sha1(self) -> str:
        """The name that EVALSHA takes: 40 hex digits."""
        return hashlib.sha1(self.source.encode(), usedforsecurity=False).hexdigest()
