"""Programs out of Debian's packages, unpacked and not installed: as root or not."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

_SECONDS = 30.0


def unpack(package: str, to: Path, seconds: float = _SECONDS) -> None:
    """Fetch a package, each step within ``seconds``, and unpack it into the folder ``to``.

    Raises OSError, or subprocess.SubprocessError.
    """
    to.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=f"{package}-") as new:
        folder = Path(new)
        sandbox = "-oAPT::Sandbox::User=root"  # another account of apt's could not write into our folder
        try:
            run("apt-get", sandbox, "download", package, folder=folder, seconds=seconds)
        except subprocess.CalledProcessError:  # the lists of packages may be missing: fetch them, for ourselves only
            own = [f"-oDir::State={folder}/state", f"-oDir::Cache={folder}/cache", sandbox]
            (folder / "state/lists/partial").mkdir(parents=True)
            run("apt-get", *own, "update", folder=folder, seconds=seconds)
            run("apt-get", *own, "download", package, folder=folder, seconds=seconds)
        (fetched,) = folder.glob(f"{package}_*.deb")
        run("dpkg", "-x", fetched.name, "unpacked", folder=folder, seconds=seconds)
        try:
            (folder / "unpacked").rename(to)  # all of it or nothing: others may fetch it at the same time
        except OSError:
            if not to.exists():
                raise


def run(*words: str, folder: Path | None = None, seconds: float = _SECONDS) -> str:
    """Run a program in ``folder`` and return what it printed. Raises OSError, or subprocess.SubprocessError."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(
        words, cwd=folder, env=environment, check=True, capture_output=True, text=True, timeout=seconds
    )
    return done.stdout
