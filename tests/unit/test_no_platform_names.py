"""One engine is each platform by a policy file alone: no platform's name is in the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from formgate_server.policies.policy import load

ROOT = Path(__file__).parents[2]
CODE = ("service", "clients", "protos", "bench", "scripts")
SUFFIXES = {".py", ".pyi", ".proto", ".lua", ".toml", ".sh", ".mako", ".ts", ".mjs", ""}
FETCHED = {"__pycache__", ".venv", "node_modules", "dist"}
PLATFORMS = ("jotform", "proforms", "jodoo", "siteplot", "formbricks")
PREFIXES = ("jf_", "pf_", "jd_", "sk_live_", "sk_test_", "fbk_")


def code() -> list[Path]:
    """Return every file of code; the policies themselves are none."""
    found = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.is_file()]
    kept = [path for path in found if path.suffix in SUFFIXES and not FETCHED & set(path.parts)]
    return [path for path in kept if path.parent.name != "policies" or path.suffix != ".toml"]


def test_the_platforms_are_those_of_the_policy_files() -> None:
    """What is looked for is all that there is besides the default."""
    policies = load()
    assert {*PLATFORMS, policies.default} == set(policies.by_name)
    own = policies.by_name[policies.default].prefixes.values()
    assert {*PREFIXES, *own} == set(policies.by_prefix)


@pytest.mark.parametrize("name", PLATFORMS)
def test_no_name_in_code(name: str) -> None:
    """The name of a platform stands in its policy file, in the manual and in tests, and nowhere else."""
    files = code()
    assert len(files) > 100
    assert [str(path) for path in files if name in path.read_text(encoding="utf-8").lower()] == []


@pytest.mark.parametrize("prefix", PREFIXES)
def test_no_prefix_in_code(prefix: str) -> None:
    """Nor does the code know what a platform's keys begin with; comments may show one."""
    quoted = re.compile(rf"""["']{prefix}["']""")
    assert [str(path) for path in code() if quoted.search(path.read_text(encoding="utf-8"))] == []
