"""How a policy looks to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from formgate.rules.grants import Level
from formgate.v1 import resources_pb2 as pb
from formgate_server.cli import people
from formgate_server.cli.text import safe
from formgate_server.core.policy import AddressKinds, Plan, Policy
from formgate_server.rpc import convert


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
    told = convert.policy(policy)
    yield people.card(
        {
            "policy": safe(told.name),
            "description": safe(told.description),
            "prefixes": [safe(f"{people.environment(each.environment)} {each.prefix}") for each in told.prefixes],
            "levels": [safe(f"{people.level(each.level)} {each.display_name}") for each in told.levels],
            "HTTP methods": [safe(f"{method} {level.name.lower()}") for method, level in policy.methods.items()],
            "permissions": [
                *(safe(f"{name} {_held_by(level)}") for name, level in sorted(policy.catalogue.levels.items())),
                *(["any noun.verb"] if told.open_catalogue else []),
            ],
            "API groups": [safe(group) for group in told.api_groups] or "any",
            "usage sums by": [
                safe(group) for group in ("key", "operation", *(f"tag:{tag}" for tag in policy.usage_tags))
            ],
        }
    )
    yield ""
    yield _keys(policy)
    yield ""
    yield _plans(policy)
    yield ""
    yield _denials(policy)


def _keys(policy: Policy) -> Table:
    """Return what keys may be, and who may make them."""
    rules = policy.keys
    creators = ", ".join(role.name.lower() for role in sorted(rules.creators)) or "anybody"
    return people.card(
        {
            "keys of an account": "any number" if rules.most is None else f"at most {rules.most:,}",
            "who may create one": creators + (", and must be named" if rules.needs_creator else ""),
            "one without grants": safe(_ungranted(policy)),
            "its creator's rights": "are the most that a key may do, at every check" if rules.capped else "cap nothing",
            "its secret": "can be revealed" if rules.recoverable else "is shown once",
            "deleting it": "only when disabled" if rules.delete_only_disabled else "in any state",
            "address rules": _addresses(rules.addresses),
        }
    )


def _held_by(level: Level) -> str:
    return level.name.lower() if level else "by its name only"


def _ungranted(policy: Policy) -> str:
    ungranted = policy.keys.ungranted
    if ungranted is None:
        return "may do what its creator may"
    levels = [policy.levels.get(grant.level, grant.level.name.lower()) for grant in ungranted]
    return f"has {', '.join(levels)} on all" if levels else "may do nothing"


def _addresses(kinds: AddressKinds) -> str:
    if not kinds.most:
        return "none"
    offered = {"addresses": True, "CIDR blocks": kinds.blocks, "wildcards": kinds.wildcards}
    versions = "IPv4 and IPv6" if kinds.ipv6 else "IPv4 only"
    return f"at most {kinds.most:,}: {', '.join(name for name, there in offered.items() if there)}; {versions}"


def _plans(policy: Policy) -> Table:
    made = people.table("PLAN", "TIME ZONE", "LIMITS")
    for plan in policy.plans.values():
        limits = [people.limits([convert.limit(limit)])[0] + _most(plan, limit.name) for limit in plan.limits]
        made.add_row(safe(plan.name), safe(plan.time_zone), "\n".join(limits) or "none")
    return made


def _most(plan: Plan, name: str) -> str:
    return f" (a key's own: at most {plan.most[name]})" if name in plan.most else ""


def _denials(policy: Policy) -> Table:
    made = people.table("DENIAL", "HTTP", "MESSAGE")
    for reason, denial in policy.denials.items():
        made.add_row(Text(reason.name), str(denial.status), safe(denial.message))
    return made
