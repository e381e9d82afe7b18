"""Prometheus and its promtool: found or fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

PACKAGE = "prometheus"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "prometheus"

_FETCH_SECONDS = 120
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
            _unpack()
        _command(str(unpacked), "--version")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise PrometheusError(_HELP.format(program, said.strip())) from None
    return unpacked


def _unpack() -> None:
    CACHE.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE.parent, prefix="prometheus-") as new:
        folder = Path(new)
        try:
            _command("apt-get", "-oAPT::Sandbox::User=root", "download", PACKAGE, folder=folder)
        except subprocess.CalledProcessError:  # the lists of packages may be missing: fetch them, for ourselves only
            own = [f"-oDir::State={folder}/state", f"-oDir::Cache={folder}/cache", "-oAPT::Sandbox::User=root"]
            (folder / "state/lists/partial").mkdir(parents=True)
            _command("apt-get", *own, "update", folder=folder)
            _command("apt-get", *own, "download", PACKAGE, folder=folder)
        (package,) = folder.glob(f"{PACKAGE}_*.deb")
        _command("dpkg", "-x", package.name, "unpacked", folder=folder)
        try:
            (folder / "unpacked").rename(CACHE)  # all of it or nothing: others may fetch it at the same time
        except OSError:
            if not CACHE.exists():
                raise


def _command(*words: str, folder: Path | None = None) -> None:
    environment = {**os.environ, "LC_ALL": "C"}
    subprocess.run(
        words, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=_FETCH_SECONDS
    )
