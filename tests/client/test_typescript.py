"""The caller in TypeScript: its code is what the contract gives, and its own tests pass against a real server."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration

from formgate.v1 import resources_pb2 as nouns
from tests.support.client import Client, new_token
from tests.support.gateways import make
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)
pytestmark = pytest.mark.timeout(400)  # the first one fetches packages

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "clients" / "typescript"
OLDEST_NODE = 20


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a command in the package's folder; AssertionError with what it printed unless it ends with 0."""
    ran = subprocess.run(
        command,
        cwd=FOLDER,
        env={**os.environ, **(environment or {})},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stdout
    return ran.stdout


@pytest.fixture(scope="module")
def package() -> Path:
    """The package, with what its lock names installed; skips where there is no Node.js or no registry."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("no node and npm")
    version = run("node", "--version").strip()
    if int(version.removeprefix("v").partition(".")[0]) < OLDEST_NODE:
        pytest.skip(f"node is {version}, and not {OLDEST_NODE} or newer")
    lock, made = FOLDER / "package-lock.json", FOLDER / "node_modules" / ".installed"
    (ROOT / ".cache").mkdir(exist_ok=True)
    with (ROOT / ".cache" / "typescript.lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not made.exists() or made.stat().st_mtime < lock.stat().st_mtime:
            try:
                run("npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
            except AssertionError as error:
                pytest.skip(f"npm can not fetch the packages: {error}")
            made.touch()
    return FOLDER


def test_the_lock_names_no_registry() -> None:
    """The lock says what each package must be, and not where it came from."""
    lock = (FOLDER / "package-lock.json").read_text(encoding="utf-8")
    assert '"integrity"' in lock
    assert '"resolved"' not in lock


def test_generated_code_is_fresh(package: Path, tmp_path: Path) -> None:
    """What is committed is what the contract gives now."""
    run(Path(sys.executable).with_name("buf"), "generate", "--output", tmp_path)
    fresh = {path.relative_to(tmp_path / "src/gen"): path.read_bytes() for path in tmp_path.rglob("*.ts")}
    committed = {path.relative_to(package / "src/gen"): path.read_bytes() for path in package.glob("src/gen/**/*.ts")}
    assert fresh
    assert committed == fresh, "npm run generate"


def test_against_a_real_server(package: Path, rpc_server: Server, manager: Client, account: str) -> None:
    """Allowed, denied, refused, too late, and answers that are none: its own tests, all of them run."""
    _, token = new_token(manager, nouns.SERVICE_ROLE_CHECKER)
    grants = [nouns.Grant(resource="forms/f1", permissions=["forms.read"])]
    limits = [nouns.Limit(name="rate", amount=100, window=Duration(seconds=60))]
    made = make(manager, account, grants=grants, limits=limits)
    environment = {
        "FORMGATE_ADDRESS": rpc_server.address,
        "FORMGATE_TOKEN": token,
        "FORMGATE_KEY": made.secret,
        "FORMGATE_KEY_ID": made.key.key_id,
    }
    printed = run("npm", "test", environment=environment)
    assert "# pass 15" in printed, printed
    assert "# skipped 0" in printed, printed
