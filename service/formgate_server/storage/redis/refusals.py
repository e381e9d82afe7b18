"""What an error reply means: did anything happen, and what is to be done about it.

In Redis 6.2 an error inside a script comes wrapped (``ERR Error running script (…): @user_script:1: -READONLY …``),
from 7.0 on it comes first (``READONLY … script: …``). Both read the same here.
"""

from __future__ import annotations

import enum
import re


class Refusal(enum.Enum):
    """What to do. All but FAULT certify that nothing happened."""

    UNKNOWN_SCRIPT = enum.auto()
    """Send the source."""
    MOVED = enum.auto()
    """Another node has the slot, for good."""
    ASK = enum.auto()
    """Another node has the slot for this one request."""
    NOT_NOW = enum.auto()
    """Ask again in a moment."""
    NOT_HERE = enum.auto()
    """This server takes nothing at present, or is a primary no more: find out by connecting anew, then ask again."""
    REFUSED = enum.auto()
    """It will be refused again until somebody does something about it."""
    FAULT = enum.auto()
    """Anything else: it may have been run in part."""


_REFUSALS = {
    "NOSCRIPT": Refusal.UNKNOWN_SCRIPT,
    "MOVED": Refusal.MOVED,
    "ASK": Refusal.ASK,
    "TRYAGAIN": Refusal.NOT_NOW,
    "LOADING": Refusal.NOT_HERE,
    "MASTERDOWN": Refusal.NOT_HERE,
    "BUSY": Refusal.NOT_HERE,
    "CLUSTERDOWN": Refusal.NOT_HERE,
    # A replica refuses every write of a script, and the others are only tested before a script's first write.
    "READONLY": Refusal.NOT_HERE,
    "OOM": Refusal.REFUSED,
    "MISCONF": Refusal.REFUSED,
    "NOREPLICAS": Refusal.REFUSED,
    "NOAUTH": Refusal.REFUSED,
    "NOPERM": Refusal.REFUSED,
    "WRONGPASS": Refusal.REFUSED,
}

_IN_SCRIPT = re.compile(r"^ERR Error running script \(.*?\): .*?-(READONLY|OOM|MISCONF|NOREPLICAS) ")
# 7.0 and later put ERR before what a script has caught and raises again.
_RAISED_AGAIN = re.compile(r"^ERR (READONLY|OOM|MISCONF|NOREPLICAS) .* script: [0-9a-f]{40}, on ")
# 7.0 and later say so at the end, and there a NOPERM may come after a write.
_AMID_SCRIPT = re.compile(r" script: [0-9a-f]{40}, on ")
_BEFORE_FIRST_WRITE = frozenset({"READONLY", "OOM", "MISCONF", "NOREPLICAS"})


def code_of(error: str) -> str:
    """Return the word that says what kind of error this is, such as ``READONLY``."""
    if wrapped := _IN_SCRIPT.match(error) or _RAISED_AGAIN.match(error):
        return wrapped[1]
    code = error.partition(" ")[0]
    if _AMID_SCRIPT.search(error) and code not in _BEFORE_FIRST_WRITE:
        return "ERR"
    return code


def refusal_of(error: str) -> Refusal:
    """Return what to do about an error reply."""
    if error.startswith("CLUSTERDOWN Hash slot not served"):
        return Refusal.NOT_NOW  # the others are served
    return _REFUSALS.get(code_of(error), Refusal.FAULT)
