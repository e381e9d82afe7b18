"""Prometheus and its promtool: found or fetched."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from scripts.debian import run, unpack

PACKAGE = "prometheus"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "prometheus"

_FETCH_SECONDS = 120.0
_HELP = f"""{{}} is missing and could not be fetched: {{}}
Put it on PATH. On Debian and Ubuntu: apt-get install {PACKAGE}"""


class PrometheusError(Exception):
    """Why there is none, and what to do about it."""


def find(program: str) -> Path:
    """Return ``prometheus`` or ``promtool``: on PATH, else unpacked beside us from Debian's package, without root.

    Raises PrometheusError.
    """
    if on_path := shutil.which(program):
        return Path(on_path)
    unpacked = CACHE / "usr/bin" / program
    try:
        if not unpacked.exists():
            unpack(PACKAGE, CACHE, _FETCH_SECONDS)
        run(str(unpacked), "--version", seconds=_FETCH_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise PrometheusError(_HELP.format(program, said.strip())) from None
    return unpacked
