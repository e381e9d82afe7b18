"""What the documentation lists is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from formgate.rules import wording
from formgate.rules.reason import Reason
from formgate_server.policies import policy
from formgate_server.settings import Settings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")

SECTIONS: dict[str, type[BaseModel]] = {
    "The file": policy._Policy,
    "Keys": policy._Keys,
    "Address rules": policy._AddressRules,
    "Plans": policy._Plan,
    "Limits": policy._Limit,
    "Denials": policy._Denial,
}


def _section(heading: str) -> str:
    """Return what stands under a heading, up to the next one of any depth."""
    found = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found, f"docs/policies.md has no section {heading}"
    return found[1]


def _default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "required"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    if isinstance(default, str):
        return f'`"{default}"`'
    return "none" if default is None or default in ([], {}) or isinstance(default, BaseModel) else str(default)


def test_every_model_of_the_file_has_a_section() -> None:
    """No part of a policy file is left out."""
    assert set(SECTIONS.values()) == set(policy._File.__subclasses__())


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_field_of_a_policy_is_explained_with_its_default(heading: str) -> None:
    """A section's table has every field in the order of the code, with the default that it really has, and no other."""
    rows = re.findall(r"^\| `(\w+)` \| .+? \| (\S+) \| \S", _section(heading), re.MULTILINE)
    assert rows == [(name, _default(field)) for name, field in SECTIONS[heading].model_fields.items()]


def test_every_placeholder_is_explained() -> None:
    """The placeholders that the page has are those that a body may hold; it says which a header may hold too."""
    rows = re.findall(r"^\| `\{(\w+)\}` \| (.+?) \|", PAGE, re.MULTILINE)
    assert {name for name, _ in rows} == policy._PLACEHOLDERS
    assert {name for name, where in rows if "header" in where} == policy._IN_HEADERS


def test_the_usual_words_are_shown() -> None:
    """The page has every reason's usual status and message, and the usual body."""
    rows = re.findall(r"^\| ([A-Z_]+) \| (\d+) \| (.+) \|$", _section("The usual words"), re.MULTILINE)
    denials = [reason for reason in Reason if reason is not Reason.OK]
    assert rows == [(each.name, str(wording.STATUSES[each]), wording.MESSAGES[each]) for each in denials]
    assert f"`{wording.BODY}`" in _section("The usual words")


def _tests_named_in(page: str) -> int:
    """Return how many tests a page names, each of which is there; ``…`` is the file that was named last."""
    named = re.findall(r"`(…|[\w/.]+\.py)(?:::(\w+))?`", page)
    last = ""
    for file, test in named:
        last = last if file == "…" else file
        text = (ROOT / last).read_text(encoding="utf-8")
        assert not test or re.search(rf"^(async )?def {test}\(", text, re.MULTILINE), f"{last} has no {test}"
    return len(named)


def test_every_test_that_a_guarantee_names_is_there() -> None:
    """A promise without its proof would be a hope, too."""
    assert _tests_named_in((ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")) > 50


def test_every_test_that_the_threat_model_names_is_there() -> None:
    """A line of it without its test would be a hope."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    assert _tests_named_in(page) > 40
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith(("| wants to", "| ---")):
            assert "`tests/" in line.rsplit("| ", 1)[1], f"no test: {line}"


def test_every_setting_is_in_the_table() -> None:
    """With the default that it really has."""
    page = (ROOT / "docs" / "operations" / "embedded.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `FORMGATE_(\w+)` \| \S+ \| `?([^`|]+?)`? \|", page, re.MULTILINE))
    told = {
        name: str(field.default).removesuffix(".0").replace("None", "none")
        for name, field in Settings.model_fields.items()
    }
    assert {name.lower(): default.lower() for name, default in rows.items()} == {n: d.lower() for n, d in told.items()}
