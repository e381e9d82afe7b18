"""The protocol of revocation, explored by Spin: it holds, and naive variants fail. The rest is for `make model`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import model, spin

PAGE = model.MODEL.with_name("README.md")
QUICK = [scenario for scenario in model.SCENARIOS if scenario.quick]
BOUNDS = spin.Bounds(seconds=90, megabytes=1_000, quick=True)


@pytest.fixture(scope="session")
def tool() -> Path:
    """Spin; without it, or without a C compiler, these tests are skipped and say so."""
    try:
        return spin.find()
    except spin.SpinError as error:
        pytest.skip(f"the model is not explored: {error}")


@pytest.mark.parametrize("scenario", QUICK, ids=lambda scenario: scenario.name)
def test_the_protocol_holds_and_naive_variants_fail(tool: Path, scenario: model.Scenario) -> None:
    """Every interleaving of the repaired protocol is explored without a stale verdict; each mistake is found."""
    found, _ = spin.explore(tool, model.MODEL, scenario.defines, BOUNDS)
    assert found.failed is not scenario.holds, found
    assert found.failed is not None, found
    if not scenario.holds and scenario.name != "reach":
        assert found.told.startswith("STALE ")


def test_what_is_not_explored_to_its_end_proves_nothing(tool: Path) -> None:
    """Out of time or memory is neither "holds" nor "fails"."""
    scenario = next(each for each in QUICK if each.name == "undisturbed")
    for bounds in (BOUNDS._replace(seconds=0.001), BOUNDS._replace(megabytes=140)):
        found, trail = spin.explore(tool, model.MODEL, scenario.defines, bounds)
        assert (found.failed, trail) == (None, ""), found


def test_a_scenario_that_does_otherwise_is_told(
    tool: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command ends with 1 and names it; with 0 where all do as they must."""
    good = model.Scenario("good", holds=False, defines=("PUB=0", "FLUSH=1"))
    monkeypatch.setattr(model, "SCENARIOS", (good, good._replace(name="bad", holds=True)))
    monkeypatch.setattr("sys.argv", ["model", "good"])
    assert model.main() == 0
    monkeypatch.setattr("sys.argv", ["model"])
    assert model.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 2 as they must; not: bad"


def test_the_page_explains_every_scenario() -> None:
    """In order, each with its macros, under what it must do."""
    rows = re.findall(r"^\| `([a-z-]+)` \| .+ \| (?:`([^`]*)`)?.*\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    macros = {each.name: tuple(macro for macro in each.defines if macro != "PUB=2") for each in model.SCENARIOS}
    told = {name: tuple(words.split()) for name, words in rows if name != "reach"}
    assert list(told) == [name for name in macros if name != "reach"]
    assert told == {name: words for name, words in macros.items() if name != "reach"}
