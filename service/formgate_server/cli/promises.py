"""How a policy looks: to programs as the contract's message, to people as a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from formgate.v1 import resources_pb2 as pb
from formgate_server.cli import people
from formgate_server.cli.text import safe
from formgate_server.core.policy import Policy
from formgate_server.rpc import convert


def message(policy: Policy) -> pb.Policy:
    """Return what the contract tells of a policy."""
    return pb.Policy(
        name=policy.name,
        description=policy.description,
        prefixes=[
            pb.PolicyPrefix(environment=convert.number(environment), prefix=prefix)
            for environment, prefix in policy.prefixes.items()
        ],
        levels=[
            pb.PolicyLevel(level=convert.number(level), display_name=title)
            for level, title in sorted(policy.levels.items())
        ],
        plans=[
            pb.PolicyPlan(
                name=plan.name, limits=[convert.limit(limit) for limit in plan.limits], time_zone=plan.time_zone
            )
            for plan in policy.plans.values()
        ],
        permissions=sorted(policy.catalogue.levels),
        open_catalogue=policy.catalogue.is_open,
        api_groups=sorted(policy.api_groups or ()),
    )


def listing(found: Sequence[pb.Policy], _width: int) -> Table:
    """Return a listing of policies."""
    made = people.table("NAME", "PREFIXES", "PLANS", "DESCRIPTION")
    for each in found:
        prefixes = " ".join(prefix.prefix for prefix in each.prefixes)
        plans = " ".join(plan.name for plan in each.plans)
        made.add_row(safe(each.name), safe(prefixes), safe(plans), safe(each.description))
    return made


def render(policy: Policy) -> RenderableType:
    """Return all that a policy promises, how it words its denials included."""
    return Group(*_parts(policy))


def _parts(policy: Policy) -> Iterator[RenderableType]:
    told = message(policy)
    yield people.card(
        {
            "policy": safe(told.name),
            "description": safe(told.description),
            "prefixes": [safe(f"{people.environment(each.environment)} {each.prefix}") for each in told.prefixes],
            "levels": [safe(f"{people.level(each.level)} {each.display_name}") for each in told.levels],
            "HTTP methods": [safe(f"{method} {level.name.lower()}") for method, level in policy.methods.items()],
            "permissions": [
                *(safe(f"{name} {level.name.lower()}") for name, level in sorted(policy.catalogue.levels.items())),
                *(["any noun.verb"] if told.open_catalogue else []),
            ],
            "API groups": [safe(group) for group in told.api_groups] or "any",
        }
    )
    yield ""
    yield _plans(told.plans)
    yield ""
    yield _denials(policy)


def _plans(plans: Sequence[pb.PolicyPlan]) -> Table:
    made = people.table("PLAN", "TIME ZONE", "LIMITS")
    for plan in plans:
        made.add_row(safe(plan.name), safe(plan.time_zone), "\n".join(people.limits(plan.limits)) or "none")
    return made


def _denials(policy: Policy) -> Table:
    made = people.table("DENIAL", "HTTP", "MESSAGE")
    for reason, denial in policy.denials.items():
        made.add_row(Text(reason.name), str(denial.status), safe(denial.message))
    return made
