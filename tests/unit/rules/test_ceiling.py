"""The ceiling: a key never exceeds its creator."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from formgate.rules.grants import Catalogue, Grant, Grants, Level
from formgate.rules.reason import Reason
from formgate.rules.standing import Standing, Wanted, denial

EXAMPLES = settings().max_examples
CATALOGUE = Catalogue({"forms.view": Level.READ, "forms.edit": Level.WRITE, "sites.view": Level.READ, "x.y": Level(0)})
RESOURCES = ("*", "forms/f1", "forms", "folders/a", "folders/a/forms/f1", "organization")

grants = st.lists(
    st.builds(
        Grant,
        st.sampled_from(RESOURCES),
        st.lists(st.sampled_from((*CATALOGUE.levels, "forms.*", "*")), max_size=2).map(tuple),
        st.sampled_from(Level),
    ),
    max_size=4,
)
wanted = st.tuples(
    st.lists(st.sampled_from((*CATALOGUE.levels, "no.such")), max_size=2).map(tuple),
    st.sampled_from(Level) | st.none(),
    st.lists(st.sampled_from(RESOURCES[1:]), max_size=2).map(tuple),
).map(lambda asked: Wanted(*asked))


def standing(own: Sequence[Grant], ceiling: Sequence[Grant] | None) -> Standing:
    """Make an enabled key of these rights."""
    return Standing(
        state=Reason.OK,
        expire_time=None,
        environment=1,
        addresses=None,
        api_groups=frozenset(),
        grants=Grants(own, CATALOGUE),
        ceiling=None if ceiling is None else Grants(ceiling, CATALOGUE),
    )


@given(grants, grants, wanted)
@settings(max_examples=5 * EXAMPLES)
def test_a_capped_key_may_what_both_may(own: list[Grant], creators: list[Grant], asked: Wanted) -> None:
    """It is allowed exactly what its grants allow and its creator's rights do; the key's own reason comes first."""
    alone = denial(standing(own, None), asked, 0)
    creator = denial(standing(creators, None), asked, 0)
    assert denial(standing(own, creators), asked, 0) == (alone or creator)


@given(grants, wanted)
@settings(max_examples=2 * EXAMPLES)
def test_a_creator_who_is_gone(own: list[Grant], asked: Wanted) -> None:
    """Without any rights of the creator, a capped key may nothing but authenticate."""
    reason = denial(standing(own, []), asked, 0)
    assert (reason is None) == (not asked.permissions and asked.level is Level.UNSPECIFIED and not asked.resources)


def test_a_ceiling_is_no_grant() -> None:
    """A creator who may everything gives a key nothing that it was not granted."""
    key = standing([Grant("forms/f1", ("forms.view",))], [Grant("*", ("*",), Level.MANAGE)])
    assert denial(key, Wanted(("forms.view",), resources=("forms/f1",)), 0) is None
    assert denial(key, Wanted(("forms.edit",), resources=("forms/f1",)), 0) is Reason.PERMISSION_DENIED
    assert denial(key, Wanted(("forms.view",), resources=("forms/f2",)), 0) is Reason.RESOURCE_NOT_ALLOWED
