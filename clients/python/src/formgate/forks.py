"""What must start anew in a forked child: connections and locks are their parent's."""

from __future__ import annotations

import os
import weakref
from typing import ClassVar, Protocol


class Forkable(Protocol):
    """What wants to know."""

    def after_fork(self) -> None:
        """Start anew; called in the child, before anything else runs there."""


class Forks:
    """All that lives and wants to know; whoever is forgotten by everybody else is forgotten here."""

    _all: ClassVar[weakref.WeakSet[Forkable]] = weakref.WeakSet()

    @classmethod
    def of(cls, forkable: Forkable) -> None:
        """Tell ``forkable`` of each fork from now on."""
        cls._all.add(forkable)

    @classmethod
    def tell(cls) -> None:
        """Tell all."""
        for forkable in list(cls._all):
            forkable.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Forks.tell)
