from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from formgate import Check, UsageRecorder, Verdict
from formgate import errors as errors_module
from formgate.common import Options
from formgate.counters import NAMES
from formgate.errors import FormgateError
from formgate.fallback import Emergency
from tests.support.callers import Key, new_key
from tests.support.client import Client as Manager
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)

PAGE = (Path(__file__).parents[2] / "docs" / "client" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def rows() -> Iterator[tuple[set[str], list[str]]]:
    """Yield what the first column of each row of a table names, and the other columns."""
    for line in PAGE.splitlines():
        if line.startswith("| `"):
            first, *others = re.split(r"\s*\|\s*", line.strip("| "))
            yield set(re.findall(r"`(\w+)`", first)), others


NAMED = set().union(*(names for names, _ in rows()))


def default_of(name: str) -> str:
    """Return what the page says an argument is without being given."""
    (found,) = (others[0] for names, others in rows() if name in names and len(others) > 1)
    return found.strip('`"')


def test_every_argument_is_explained() -> None:
    """Those of a client, of a check, of a recorder, the fields of a verdict, what is counted, and each error."""
    wanted = {*Options.__annotations__, *Check._fields, *NAMES, *(field.name for field in fields(Verdict))}
    wanted |= set(inspect.signature(UsageRecorder).parameters) | {"address", "token", "timeout"}
    assert wanted - NAMED == set()
    errors = {
        name for name, each in vars(errors_module).items() if inspect.isclass(each) and issubclass(each, FormgateError)
    }
    assert {name for name in errors if f"`{name}`" not in PAGE} == set()


def test_every_default_is_the_real_one() -> None:
    """Of the emergency budget and the recorder, which say theirs in code."""
    for field in fields(Emergency):
        assert float(default_of(field.name)) == field.default
    for name in ("interval", "most", "spool_bytes", "fsync"):
        assert default_of(name) == str(inspect.signature(UsageRecorder).parameters[name].default)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_what_the_page_shows_runs(
    block: str, rpc_server: Server, manager: Manager, account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each example runs as it stands, against a real server of the environment."""
    monkeypatch.setenv("FORMGATE_ADDRESS", rpc_server.address)
    monkeypatch.setenv("FORMGATE_TOKEN", rpc_server.token)
    key: Key = new_key(manager, account)
    told = {"secret": key.secret, "key_id": key.key_id}
    exec(compile(block, "python.md", "exec"), told)
    if "verdict" in told:
        assert told["verdict"]
