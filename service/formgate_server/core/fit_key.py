"""Whether a key is one that its account's policy has: what CreateKey, CopyKey and UpdateKey all look at.

Accounts' own limits too: they apply to all its keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from formgate_server.core import fields
from formgate_server.core.errors import FailedPreconditionError, InvalidArgumentError
from formgate_server.core.model import Account, Environment, Limit
from formgate_server.core.policy import Plan, Policy
from formgate_server.core.ports import Transaction


def prefix(policy: Policy, environment: Environment) -> str:
    """Return what new secrets of this environment begin with. Raises FailedPreconditionError."""
    found = policy.prefixes.get(environment)
    if found is None:
        message = f"policy {policy.name} has no {environment.name} keys"
        raise FailedPreconditionError(message, reason="ENVIRONMENT_NOT_OFFERED")
    return found


async def admit(transaction: Transaction, account: Account, policy: Policy, created_by: str) -> None:
    """Check that this member may create one more key. Raises InvalidArgumentError, FailedPreconditionError."""
    rules = policy.keys
    if rules.needs_creator and not created_by:
        raise InvalidArgumentError("created_by", f"is required: policy {policy.name} looks at who creates a key")
    if rules.creators:
        member = await transaction.member(account.account_id, created_by)
        if member is None or member.role not in rules.creators:
            roles = " or ".join(sorted(role.name for role in rules.creators))
            message = f"policy {policy.name} lets only members of role {roles} create keys"
            raise FailedPreconditionError(message, reason="CREATOR_NOT_ALLOWED")
    if rules.most is not None and await transaction.count_keys(account.account_id) >= rules.most:
        message = f"the account has {rules.most} keys, the most that policy {policy.name} allows: revoke or delete one"
        raise FailedPreconditionError(message, reason="TOO_MANY_KEYS")


def limits(values: Sequence[Limit], plan: Plan, field: str) -> tuple[Limit, ...]:
    """Check the limits of a key or an account: none may exceed what the plan lets a key have."""
    for index, limit in enumerate(fields.limits(values, field)):
        most = plan.most.get(limit.name)
        if most is None:
            continue
        of_plan = next(each for each in plan.limits if each.name == limit.name)
        if (limit.holder, limit.per) != (of_plan.holder, of_plan.per):
            raise InvalidArgumentError(f"{field}[{index}]", f"must count as the plan's {limit.name} does")
        if limit.amount is None or limit.amount > most:
            raise InvalidArgumentError(f"{field}[{index}].amount", f"must be at most {most}")
    return tuple(values)
