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

STRICT = """
name = "strict"
description = "Made by global administrators, deleted only when disabled, one at a time."
prefixes = { LIVE = "strict_" }

[permissions]
"forms.view" = "READ"

[keys]
most = 1
creators = ["GLOBAL_ADMIN"]
created_by = "required"
ungranted = "CREATOR"
capped = true
delete_only_disabled = true

[plans.standard]
time_zone = "UTC"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server for these tests, with the strictest policy that we know."""
    policies = tmp_path_factory.mktemp("policies")
    (policies / "strict.toml").write_text(STRICT)
    environment = {"FORMGATE_POLICY_DIR": str(policies)}
    with Server(tmp_path_factory.mktemp("server"), environment=environment) as server:
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


@pytest.mark.parametrize(("policy", "times"), [("default", 1), ("strict", 2)])
def test_it_sees_a_key_allowed_and_can_be_run_again(server: Server, tmp_path: Path, policy: str, times: int) -> None:
    """A real account, key and check, of any policy; a second run finds the account there, and no more keys than one."""
    for _ in range(times):
        done = smoke(server, tmp_path, server.token, policy)
        assert done.returncode == 0, done.stderr
        assert "ALLOWED" in done.stdout
        assert done.stdout.endswith("a key was allowed, and what is none was denied\n")


def test_it_fails_where_the_token_is_wrong(server: Server, tmp_path: Path) -> None:
    """A check that can not fail would be none."""
    assert smoke(server, tmp_path, "0" * 40).returncode != 0
