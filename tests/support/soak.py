"""Whether tests run at length, as ``make soak`` has them: more rounds, more examples."""

from __future__ import annotations

import os

SOAK = os.environ.get("FORMGATE_SOAK") == "1"
