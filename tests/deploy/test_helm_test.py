"""What the pod of `helm test` runs, run as it stands against a real server."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.rendered import environment, pods
from tests.support.server import COMMAND, Server, clean_environment

pytestmark = pytest.mark.usefixtures("helm")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for these tests."""
    with Server(tmp_path_factory.mktemp("server")) as server:
        yield server


def smoke(server: Server, folder: Path, token: str, policy: str = "default") -> subprocess.CompletedProcess[str]:
    """Run the script as its pod would, against ``server``, with an account for each policy."""
    pod = pods("default", f"--set=tests.policy={policy}")["test"]
    (folder / "token").write_text(token)
    given = environment(pod) | {
        "FORMGATE_ADDRESS": server.address,
        "FORMGATE_TOKEN_FILE": str(folder / "token"),
        "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}",
    }
    del given["FORMGATE_TLS_CA_FILE"]
    container = pod["containers"][0]
    (script,) = container["args"]
    assert "account=helm-test\n" in script
    command = [*container["command"], script.replace("account=helm-test", f"account=helm-test-{policy}")]
    return subprocess.run(
        command, cwd=folder, env=clean_environment(given), check=False, capture_output=True, text=True
    )


def test_it_sees_a_key_allowed_and_can_be_run_again(server: Server, tmp_path: Path) -> None:
    """A real account, key and check; a second run finds the account there and leaves no more keys than one."""
    for _ in range(2):
        done = smoke(server, tmp_path, server.token)
        assert done.returncode == 0, done.stderr
        assert "ALLOWED" in done.stdout
        assert done.stdout.endswith("a key was allowed, and what is none was denied\n")


@pytest.mark.parametrize(("policy", "times"), [("jodoo", 2), ("siteplot", 1)])
def test_it_takes_any_policy(server: Server, tmp_path: Path, policy: str, times: int) -> None:
    """One that deletes only disabled keys, and one that wants a creator of the highest standing."""
    for _ in range(times):
        done = smoke(server, tmp_path, server.token, policy)
        assert done.returncode == 0, done.stderr
        assert "ALLOWED" in done.stdout


def test_it_fails_where_the_token_is_wrong(server: Server, tmp_path: Path) -> None:
    """A check that can not fail would be none."""
    assert smoke(server, tmp_path, "0" * 40).returncode != 0
