"""Service tokens: the credentials of calling services. Create, list, revoke; and the first one."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from formgate_server.core import audit, fields, lookup, secrets
from formgate_server.core.changes import Changed, Changes
from formgate_server.core.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError, PermissionDeniedError
from formgate_server.core.model import Caller, ServiceRole, ServiceToken
from formgate_server.core.paging import Page, page
from formgate_server.core.policy import Policies
from formgate_server.core.ports import Cursor, Scope, Transaction

_DAY = 86_400 * 1_000_000
USUAL_TTL = 365 * _DAY
LONGEST_TTL = 3_660 * _DAY

BOOTSTRAP = Caller("bootstrap", ServiceRole.MANAGER)
"""Who makes the first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewToken:
    """A service token to make. ``ttl`` None: a year."""

    display_name: str = ""
    role: ServiceRole | None = None
    account_id: str = ""
    policy: str = ""
    ttl: int | None = None


class ManageTokens:
    """What can be done with service tokens. A bound caller sees and makes only tokens with its own bonds."""

    def __init__(self, changes: Changes, policies: Policies, peppers: secrets.Peppers) -> None:
        self._changes = changes
        self._policies = policies
        self._peppers = peppers

    async def create(self, caller: Caller, new: NewToken) -> tuple[ServiceToken, str]:
        """Make a token and return it with its secret."""
        if new.role is None:
            raise InvalidArgumentError("role", "is required")
        if caller.account_id not in ("", new.account_id) or caller.policy not in ("", new.policy):
            message = "a bound token makes only tokens with its own bonds: give the same account_id and policy"
            raise PermissionDeniedError(message, reason="TOKEN_BOUND")
        if new.policy:
            lookup.policy(self._policies, new.policy)
        now = self._changes.clock.now()
        ttl = USUAL_TTL if new.ttl is None else fields.number(new.ttl, "ttl", smallest=1, largest=LONGEST_TTL)
        secret = secrets.new_secret(secrets.TOKEN_PREFIX)
        token = ServiceToken(
            token_id=secrets.new_id("tok"),
            display_name=fields.display_name(new.display_name),
            role=new.role,
            account_id=fields.identifier(new.account_id, "account_id"),
            policy=new.policy,
            create_time=now,
            expire_time=now + ttl,
        )

        async def insert(transaction: Transaction) -> Changed[ServiceToken]:
            if token.account_id:
                await lookup.account(transaction, caller, token.account_id)
            await transaction.insert_token(token, *self._peppers.digest(secret))
            await transaction.audit(audit.event(caller, "CreateServiceToken", now, after=token))
            return Changed(token, token.account_id, None)

        return (await self._changes.apply(insert)).result, secret

    async def list(self, caller: Caller, page_size: int, page_token: str) -> Page[ServiceToken]:
        """Return a page of the tokens that the caller sees, oldest first."""
        scope = Scope(caller.account_id, caller.policy)

        async def fetch(after: Cursor | None, most: int) -> list[ServiceToken]:
            return await self._changes.registry.tokens(scope, after, most)

        return await page(fetch, lambda t: Cursor(t.create_time, t.token_id), ("tokens", scope), page_size, page_token)

    async def revoke(self, caller: Caller, token_id: str) -> ServiceToken:
        """End a token."""
        fields.required(token_id, "token_id")

        async def change(transaction: Transaction) -> Changed[ServiceToken]:
            before = await transaction.token(token_id)
            if before is None or not lookup.sees(caller, before.account_id, before.policy):
                message = f"service token {token_id} does not exist"
                raise NotFoundError(message, reason="SERVICE_TOKEN_NOT_FOUND", metadata={"token_id": token_id})
            if before.revoke_time is not None:
                return Changed(before, before.account_id, None)
            now = self._changes.clock.now()
            after = replace(before, revoke_time=now)
            await transaction.update_token(after)
            await transaction.audit(audit.event(caller, "RevokeServiceToken", now, before=before, after=after))
            return Changed(after, before.account_id, None)

        return (await self._changes.apply(change)).result

    async def bootstrap(self, secret: str) -> None:
        """See to it that ``secret`` is a manager's token; one that was revoked stays so. It does not expire.

        From now on it is stored under the newest pepper, as no other token can be: so older ones can be retired.
        """
        now = self._changes.clock.now()

        async def insert(transaction: Transaction) -> Changed[None]:
            there = await transaction.token_of_digest(self._peppers.digests(secret))
            if there is not None:
                await transaction.replace_token_digest(there.token_id, *self._peppers.digest(secret))
            else:
                token = ServiceToken(
                    token_id=secrets.new_id("tok"),
                    display_name="bootstrap",
                    role=ServiceRole.MANAGER,
                    account_id="",
                    policy="",
                    create_time=now,
                    expire_time=None,
                )
                await transaction.insert_token(token, *self._peppers.digest(secret))
                await transaction.audit(audit.event(BOOTSTRAP, "CreateServiceToken", now, after=token))
            return Changed(None, "", None)

        with suppress(AlreadyExistsError):  # another server, starting at the same moment, was quicker
            await self._changes.apply(insert)
