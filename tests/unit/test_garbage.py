"""How seldom a serving process looks for garbage."""

from __future__ import annotations

import subprocess
import sys

_LOOKED_AT = """
import gc
from formgate_server import garbage
garbage.slow_down()
before = gc.get_stats()[0]["collections"]
kept = [[] for _ in range(8_000)]
print(gc.get_freeze_count() > 1_000, gc.get_stats()[0]["collections"] - before)
kept += [[] for _ in range(4_000)]
print(gc.get_stats()[0]["collections"] - before)
"""


def test_what_is_young_is_looked_at_seldom() -> None:
    """What was there is looked at no more; eight thousand objects that are kept are not yet, twelve thousand are."""
    run = subprocess.run([sys.executable, "-c", _LOOKED_AT], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["True", "0", "1"]
