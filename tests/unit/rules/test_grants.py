"""Grants, against the contract's words read grant by grant and segment by segment."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from formgate.rules.grants import Catalogue, Grant, Grants, Level, ancestors
from formgate.rules.reason import Reason

EXAMPLES = settings().max_examples

CATALOGUE = Catalogue(
    {
        "forms.view": Level.READ,
        "forms.edit": Level.WRITE,
        "forms.delete": Level.MANAGE,
        "formsets.view": Level.READ,
        "team.view": Level.READ,
        "team.manage": Level.UNSPECIFIED,
    }
)
OPEN = Catalogue(CATALOGUE.levels, is_open=True)

KNOWN = tuple(CATALOGUE.levels)
NEVER_KNOWN = ("*", "forms.*", "Forms.view", "forms", "forms.", ".view", "forms.view ", "")
ONLY_OPEN = ("sites.view", "sites.view.all", "forms.view.all")
PATTERNS = ("*", "forms.*", "form.*", "team.*", "sites.*", "sites.view.*")


def is_below(resource: str, granted: str) -> bool:
    """Tell whether ``granted`` is the resource or one above it, by whole segments."""
    segments = resource.split("/")
    if granted == "*":
        return segments[0] != "organization"
    above = granted.split("/")
    return segments[: len(above)] == above


def holds(grant: Grant, wanted: str | Level, catalogue: Catalogue) -> bool:
    """Tell whether one grant holds a permission or a level."""
    if isinstance(wanted, Level):
        return "*" in grant.permissions or grant.level >= wanted
    if wanted not in catalogue.levels and not (catalogue.is_open and wanted in ONLY_OPEN):
        return False
    nouns = wanted.split(".")
    for name in grant.permissions:
        if name in ("*", wanted):
            return True
        parts = name.split(".")
        if parts[-1] == "*" and nouns[: len(parts) - 1] == parts[:-1] and len(nouns) >= len(parts):
            return True
    lowest = catalogue.levels.get(wanted, Level.UNSPECIFIED)
    return lowest is not Level.UNSPECIFIED and grant.level >= lowest


def denial(
    grants: list[Grant], catalogue: Catalogue, permissions: list[str], level: Level, resources: list[str]
) -> Reason | None:
    """Answer as the contract's «How grants answer» says."""

    def covers(grant: Grant) -> bool:
        if not resources:
            return grant.resource == "*"
        return any(is_below(resource, grant.resource) for resource in resources)

    wanted: list[str | Level] = [*permissions, *([level] if level else [])]
    if not wanted:
        return Reason.RESOURCE_NOT_ALLOWED if resources and not any(map(covers, grants)) else None
    if not all(any(holds(grant, one, catalogue) for grant in grants) for one in wanted):
        return Reason.PERMISSION_DENIED
    if not all(any(covers(grant) and holds(grant, one, catalogue) for grant in grants) for one in wanted):
        return Reason.RESOURCE_NOT_ALLOWED
    return None


segments = st.sampled_from(("forms", "f1", "f10", "folders", "organization"))
resources = st.one_of(st.just("*"), st.lists(segments, min_size=1, max_size=4).map("/".join))
grants = st.builds(
    Grant,
    resources,
    st.lists(st.sampled_from((*KNOWN, *PATTERNS)), max_size=2).map(tuple),
    st.sampled_from((Level.UNSPECIFIED, Level.UNSPECIFIED, *Level)),
)


@settings(max_examples=10 * EXAMPLES)
@given(
    st.lists(grants, max_size=4),
    st.sampled_from((CATALOGUE, OPEN)),
    st.lists(st.one_of(st.sampled_from(KNOWN), st.sampled_from((*KNOWN, *NEVER_KNOWN, *ONLY_OPEN))), max_size=2),
    st.sampled_from((Level.UNSPECIFIED, *Level)),
    st.lists(resources, max_size=2),
)
def test_grants_answer_as_the_contract_says(
    given_grants: list[Grant], catalogue: Catalogue, permissions: list[str], level: Level, resources: list[str]
) -> None:
    """Any grants, permissions, level and resources are decided as reading the grants one by one decides them."""
    decided = Grants(given_grants, catalogue).denial(permissions, level, resources)
    assert decided == denial(given_grants, catalogue, permissions, level, resources)


@settings(max_examples=2 * EXAMPLES)
@given(resources, st.lists(segments, min_size=1, max_size=4).map("/".join))
def test_the_ancestors_of_a_resource_are_those_that_cover_it(granted: str, resource: str) -> None:
    """What is looked up for a resource is exactly what covers it by whole segments."""
    assert (granted in ancestors(resource)) == is_below(resource, granted)


@pytest.mark.parametrize(
    ("granted", "asked", "allowed"),
    [
        ("forms/f1", "forms/f1", True),
        ("forms/f1", "forms/f1/submissions/9", True),
        ("forms/f1", "forms/f10", False),
        ("forms/f10", "forms/f1", False),
        ("forms/f1", "forms", False),
        ("forms", "forms/f1", True),
        ("folders/finance", "folders/finance/forms/f1", True),
        ("folders/finance", "folders/finance2/forms/f1", False),
        ("f1", "forms/f1", False),
        ("*", "forms/f1", True),
        ("*", "*", True),
        ("forms", "*", False),
        ("*", "organization", False),
        ("*", "organization/members", False),
        ("organization", "organization", True),
        ("organization", "organization/members", True),
        ("organization", "forms/f1", False),
        ("organization", "*", False),
        ("*", "organizations", True),
        ("*", "forms/organization", True),
    ],
)
def test_a_grant_covers_its_resource_and_all_below_it(granted: str, asked: str, *, allowed: bool) -> None:
    """By whole segments; ``*`` covers everything but the organization, which is granted by its name only."""
    decided = Grants([Grant(granted, ("forms.view",))], CATALOGUE)
    expected = None if allowed else Reason.RESOURCE_NOT_ALLOWED
    assert decided.denial(("forms.view",), Level.UNSPECIFIED, (asked,)) == expected
    assert decided.denial((), Level.UNSPECIFIED, (asked,)) == expected


def test_one_covered_resource_suffices() -> None:
    """All the paths of the one thing asked for are given, and a grant on any of them counts."""
    by_folder = Grants([Grant("folders/finance", ("forms.view",))], CATALOGUE)
    assert by_folder.denial(("forms.view",), Level.UNSPECIFIED, ("forms/f1", "folders/finance/forms/f1")) is None


def test_without_a_resource_only_grants_on_everything_count() -> None:
    """A grant on one form does not answer for a check that names none; without any wish the check authenticates."""
    on_one = Grants([Grant("forms/f1", ("forms.view",))], CATALOGUE)
    assert on_one.denial(("forms.view",), Level.UNSPECIFIED, ()) is Reason.RESOURCE_NOT_ALLOWED
    assert on_one.denial((), Level.UNSPECIFIED, ()) is None
    assert Grants([Grant("*", ("forms.view",))], CATALOGUE).denial(("forms.view",), Level.UNSPECIFIED, ()) is None
    assert Grants([], CATALOGUE).denial((), Level.UNSPECIFIED, ()) is None
    assert Grants([], CATALOGUE).denial((), Level.UNSPECIFIED, ("forms",)) is Reason.RESOURCE_NOT_ALLOWED


def test_held_elsewhere_is_another_reason_than_held_by_no_grant() -> None:
    """PERMISSION_DENIED where no grant holds it, RESOURCE_NOT_ALLOWED where none that does covers the resource."""
    decided = Grants([Grant("forms/f1", ("forms.view",))], CATALOGUE)
    assert decided.denial(("forms.edit",), Level.UNSPECIFIED, ("forms/f1",)) is Reason.PERMISSION_DENIED
    assert decided.denial(("forms.view",), Level.UNSPECIFIED, ("forms/f2",)) is Reason.RESOURCE_NOT_ALLOWED
    assert decided.denial(("forms.view", "forms.edit"), Level.UNSPECIFIED, ("forms/f2",)) is Reason.PERMISSION_DENIED


@pytest.mark.parametrize("level", [Level.READ, Level.WRITE, Level.MANAGE])
def test_a_level_holds_the_permissions_up_to_it(level: Level) -> None:
    """READ ⊂ WRITE ⊂ MANAGE; a permission that no level holds is held by its name only."""
    decided = Grants([Grant("*", level=level)], CATALOGUE)
    for permission, lowest in CATALOGUE.levels.items():
        held = lowest is not Level.UNSPECIFIED and lowest <= level
        expected = None if held else Reason.PERMISSION_DENIED
        assert decided.denial((permission,), Level.UNSPECIFIED, ("forms/f1",)) == expected
    for wanted in (Level.READ, Level.WRITE, Level.MANAGE):
        expected = None if wanted <= level else Reason.PERMISSION_DENIED
        assert decided.denial((), wanted, ("forms/f1",)) == expected


def test_the_permission_for_everything_holds_every_level() -> None:
    """A grant of ``*`` holds all permissions and all levels; a group of permissions holds no level."""
    everything = Grants([Grant("*", ("*",))], CATALOGUE)
    assert everything.denial(KNOWN, Level.MANAGE, ("forms/f1",)) is None
    group = Grants([Grant("*", ("forms.*",))], CATALOGUE)
    assert group.denial(("forms.delete",), Level.UNSPECIFIED, ()) is None
    assert group.denial(("formsets.view",), Level.UNSPECIFIED, ()) is Reason.PERMISSION_DENIED
    assert group.denial((), Level.READ, ()) is Reason.PERMISSION_DENIED


@pytest.mark.parametrize("held", ["*", "forms.*", "forms.publish"])
def test_a_permission_that_the_catalogue_has_lost_is_held_by_nobody(held: str) -> None:
    """Outside the catalogue is PERMISSION_DENIED in a check, though a grant named it when it was inside."""
    before = Catalogue({**CATALOGUE.levels, "forms.publish": Level.WRITE})
    grant = Grant("*", (held,), Level.MANAGE)
    assert Grants([grant], before).denial(("forms.publish",), Level.UNSPECIFIED, ()) is None
    assert Grants([grant], CATALOGUE).denial(("forms.publish",), Level.UNSPECIFIED, ()) is Reason.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("pattern", "closed", "opened"),
    [
        ("*", True, True),
        ("forms.view", True, True),
        ("forms.*", True, True),
        ("sites.view", False, True),
        ("sites.*", False, True),
        ("sites.view.*", False, True),
        ("form.*", False, True),
        ("forms", False, False),
        (".*", False, False),
        ("**", False, False),
        ("*.*", False, False),
        ("*.view", False, False),
        ("forms*", False, False),
        ("forms.**", False, False),
        ("forms.v*", False, False),
        ("Forms.*", False, False),
        ("forms.view\n", False, False),
        ("förms.view", False, False),
        ("", False, False),
    ],
)
def test_what_a_grant_may_name(pattern: str, *, closed: bool, opened: bool) -> None:
    """A permission of the catalogue, a group of some, or ``*``; an open catalogue knows any ``noun.verb`` besides."""
    assert CATALOGUE.knows_pattern(pattern) is closed
    assert OPEN.knows_pattern(pattern) is opened


@pytest.mark.parametrize("permission", NEVER_KNOWN)
def test_a_check_can_not_ask_for_a_pattern(permission: str) -> None:
    """What is no permission is held by nobody, not by the holder of everything either."""
    assert not OPEN.knows(permission)
    decided = Grants([Grant("*", ("*", "forms.*"), Level.MANAGE)], OPEN)
    assert decided.denial((permission,), Level.UNSPECIFIED, ()) is Reason.PERMISSION_DENIED
