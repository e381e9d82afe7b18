"""Callers at random: some check all the time, some change all the time, and every start and end is written down."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from formgate.v1 import accounts_pb2, accounts_pb2_grpc, authorization_pb2, authorization_pb2_grpc, keys_pb2_grpc
from formgate.v1 import keys_pb2 as keys
from formgate.v1 import resources_pb2 as pb
from tests.proof.history import History, Seen, now

POLICY = """
name = "proof"
description = "Keys whose every state has a reason of its own."
prefixes = { LIVE = "proof_" }
permissions = { "forms.view" = "READ" }
levels = { READ = "Read" }
longest_lease = "0"

[keys]
created_by = "required"
ungranted = "CREATOR"

[plans.open]
time_zone = "UTC"
limits = [{ name = "rate", holder = "KEY", amount = 1_000_000, window = "1m" }]

[plans.closed]
time_zone = "UTC"
limits = [{ name = "credits", holder = "ACCOUNT", amount = 0, lifetime = true }]
"""
OK, DISABLED, REVOKED = pb.KEY_STATE_ENABLED, pb.KEY_STATE_DISABLED, pb.KEY_STATE_REVOKED
DELETED = pb.KEY_STATE_UNSPECIFIED
"""The state of a key that is not there any more: no answer tells one."""
HERE, ELSEWHERE = "192.0.2.1", "192.0.2.2"
R = authorization_pb2.Reason
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def reason_name(name: str) -> R.ValueType:
    """Return the reason of that name."""
    return R.Value(f"REASON_{name}")


def _channel(address: str) -> grpc.aio.Channel:
    """Return a channel of its own that finds a server which is back at once."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
    return grpc.aio.insecure_channel(address, options=options)


@dataclass
class Tenant:
    """An account with one key at a time, as its one mutator knows it."""

    account_id: str
    key_id: str = ""
    secret: str = ""
    state: int = OK
    suspended: bool = False
    plan: str = "open"
    may_view: bool = True
    member: bool = True
    address: str = ""
    retired: list[str] = field(default_factory=list)
    """Secrets that never come back: revoked, deleted, rotated out."""

    def reason(self) -> R.ValueType:
        """Return what a check of the key is to say."""
        if self.state == DELETED:
            return reason_name("KEY_NOT_FOUND")
        if self.state == REVOKED:
            return reason_name("KEY_REVOKED")
        if self.state == DISABLED:
            return reason_name("KEY_DISABLED")
        if self.suspended:
            return reason_name("ACCOUNT_SUSPENDED")
        if self.address == ELSEWHERE:
            return reason_name("IP_NOT_ALLOWED")
        if not (self.member and self.may_view):
            return reason_name("PERMISSION_DENIED")
        return reason_name("CREDITS_EXHAUSTED") if self.plan == "closed" else reason_name("OK")


class Traffic:
    """The callers, over a channel to each server."""

    def __init__(self, addresses: Sequence[str], token: str, *, seed: int) -> None:
        self.history = History()
        self.random = random.Random(seed)
        self.metadata = (("authorization", f"Bearer {token}"),)
        self.channels = [_channel(each) for each in addresses]
        self.secrets: list[str] = []
        self.tenants: list[Tenant] = []
        self.stopping = False
        self.changes = 0
        self._awaited: list[tuple[int, asyncio.Event]] = []
        self.later = 0
        """How many changes were answered to be in effect later."""

    def readdress(self, server: int, address: str) -> None:
        """Go on with a server that has another address now."""
        self.channels[server] = _channel(address)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self.channels:
            await channel.close()

    # Changes.

    async def call(self, stub: Callable[[grpc.aio.Channel], Any], method: str, request: Any) -> Any:
        """Call until there is an answer; each time on a server at random. What may have been done is done again."""
        while True:
            channel = self.random.choice(self.channels)
            try:
                return await getattr(stub(channel), method)(request, metadata=self.metadata, timeout=10)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _AGAIN:
                    raise
                await asyncio.sleep(0.02)

    async def accounts(self, method: str, request: Any) -> Any:
        """Call AccountService."""
        return await self.call(accounts_pb2_grpc.AccountServiceStub, method, request)

    async def keys(self, method: str, request: Any) -> Any:
        """Call KeyService."""
        return await self.call(keys_pb2_grpc.KeyServiceStub, method, request)

    async def tenant(self) -> Tenant:
        """Make an account with a member and a key."""
        request = accounts_pb2.CreateAccountRequest(policy="proof", display_name="proof")
        tenant = Tenant((await self.accounts("CreateAccount", request)).account.account_id)
        await self.accounts("SetMember", self._member(tenant))
        await self.new_key(tenant)
        self.tenants.append(tenant)
        return tenant

    def _member(self, tenant: Tenant) -> accounts_pb2.SetMemberRequest:
        permissions = ["forms.view"] if tenant.may_view else []
        return accounts_pb2.SetMemberRequest(
            account_id=tenant.account_id, member_id="ann", role=pb.ROLE_MEMBER, permissions=permissions
        )

    async def new_key(self, tenant: Tenant) -> None:
        """Give the account another key."""
        began = now()
        request = keys.CreateKeyRequest(account_id=tenant.account_id, created_by="ann")
        made = await self.keys("CreateKey", request)
        tenant.key_id, tenant.secret, tenant.state, tenant.address = made.key.key_id, made.secret, OK, ""
        self._know(tenant.secret, tenant.reason(), "CreateKey", began)

    def _know(self, secret: str, reason: R.ValueType, change: str, began: float) -> None:
        self.history.end(secret, self.history.begin(secret, reason, change, began), now())
        self.secrets.append(secret)

    async def change(self, tenant: Tenant, name: str, call: Callable[[], Awaitable[Any]]) -> Any:
        """Make a change that ``tenant`` already tells, and write down from when to when it took."""
        self.changes += 1
        place = self.history.begin(tenant.secret, tenant.reason(), name, now())
        answer = await call()
        ended = now()
        self.history.end(tenant.secret, place, self._effective(answer, ended))
        return answer

    def _effective(self, answer: Any, ended: float) -> float:
        """Return from when on a change is in effect, as its answer says; nothing said: at once."""
        ahead = 0.0
        if answer.DESCRIPTOR.fields_by_name.get("effective_time") is not None:
            ahead = max(0.0, answer.effective_time.ToNanoseconds() / 1e9 - time.time())
        self.later += ahead > 0
        return ended + ahead

    async def mutate(self, tenant: Tenant) -> None:
        """Make one change at random; of two, one that does away with why the key is denied, if it is."""
        if not tenant.member:
            await self._set_member(tenant)
        elif tenant.state in {REVOKED, DELETED}:
            tenant.retired.append(tenant.secret)
            await self.new_key(tenant)
        elif self.random.random() < 0.5 and (mend := self._mend(tenant)):
            await mend(tenant)
        else:
            await self.random.choice(self._kinds)(tenant)

    def _mend(self, tenant: Tenant) -> Callable[[Tenant], Awaitable[None]] | None:
        """Return what may do away with why the key's checks are denied; None: they are not."""
        mends = (
            (tenant.state == DISABLED, self._enable),
            (tenant.suspended, self._suspend),
            (tenant.address == ELSEWHERE, self._limit_address),
            (not tenant.may_view, self._set_member),
            (tenant.plan == "closed", self._change_plan),
        )
        return next((mend for is_denied, mend in mends if is_denied), None)

    @property
    def _kinds(self) -> Sequence[Callable[[Tenant], Awaitable[None]]]:
        return (
            self._disable,
            self._enable,
            self._revoke,
            self._delete,
            self._limit_address,
            self._rotate,
            self._set_member,
            self._remove_member,
            self._change_plan,
            self._suspend,
        )

    async def _disable(self, tenant: Tenant) -> None:
        tenant.state = DISABLED
        request = keys.DisableKeyRequest(key_id=tenant.key_id)
        await self.change(tenant, "DisableKey", lambda: self.keys("DisableKey", request))

    async def _enable(self, tenant: Tenant) -> None:
        tenant.state = OK
        request = keys.EnableKeyRequest(key_id=tenant.key_id)
        await self.change(tenant, "EnableKey", lambda: self.keys("EnableKey", request))

    async def _revoke(self, tenant: Tenant) -> None:
        tenant.state = REVOKED
        request = keys.RevokeKeyRequest(key_id=tenant.key_id)
        await self.change(tenant, "RevokeKey", lambda: self.keys("RevokeKey", request))

    async def _delete(self, tenant: Tenant) -> None:
        tenant.state = DELETED
        request = keys.DeleteKeyRequest(key_id=tenant.key_id)
        await self.change(tenant, "DeleteKey", lambda: self._gone(tenant, self.keys("DeleteKey", request)))

    async def _limit_address(self, tenant: Tenant) -> None:
        tenant.address = self.random.choice(("", HERE, ELSEWHERE))
        changed = pb.Key(key_id=tenant.key_id, ip_rules=[tenant.address] if tenant.address else [])
        request = keys.UpdateKeyRequest(key=changed, update_mask=FieldMask(paths=["ip_rules"]))
        await self.change(tenant, "UpdateKey", lambda: self.keys("UpdateKey", request))

    async def _rotate(self, tenant: Tenant) -> None:
        """Rotate without an overlap. Cut off, it may have been done, and its new secret is nobody's: again, then."""
        old, began = tenant.secret, now()
        self.changes += 1
        place = self.history.begin(old, reason_name("KEY_NOT_FOUND"), "RotateKey", began)
        rotated = await self.keys("RotateKey", keys.RotateKeyRequest(key_id=tenant.key_id, overlap=Duration()))
        self.history.end(old, place, self._effective(rotated, now()))
        tenant.retired.append(old)
        tenant.secret = rotated.secret
        self._know(tenant.secret, tenant.reason(), "RotateKey", began)

    async def _set_member(self, tenant: Tenant) -> None:
        tenant.member, tenant.may_view = True, self.random.random() < 0.6
        await self.change(tenant, "SetMember", lambda: self.accounts("SetMember", self._member(tenant)))

    async def _remove_member(self, tenant: Tenant) -> None:
        disposition, tenant.state = self.random.choice(
            (
                (accounts_pb2.KEY_DISPOSITION_KEEP, tenant.state),
                (accounts_pb2.KEY_DISPOSITION_DISABLE, DISABLED),
                (accounts_pb2.KEY_DISPOSITION_REVOKE, REVOKED),
            )
        )
        tenant.member = False
        request = accounts_pb2.RemoveMemberRequest(
            account_id=tenant.account_id, member_id="ann", key_disposition=disposition
        )

        await self.change(tenant, "RemoveMember", lambda: self._gone(tenant, self.accounts("RemoveMember", request)))

    async def _gone(self, tenant: Tenant, removal: Awaitable[Any]) -> Any:
        """Remove something, which a call before, of which no answer came, may have done."""
        try:
            return await removal
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            # That one may not have been published. So that it is: any change of the account.
            return await self.accounts("SetMember", self._other(tenant))

    def _other(self, tenant: Tenant) -> accounts_pb2.SetMemberRequest:
        return accounts_pb2.SetMemberRequest(account_id=tenant.account_id, member_id="bob", role=pb.ROLE_MEMBER)

    async def _change_plan(self, tenant: Tenant) -> None:
        tenant.plan = self.random.choice(("open", "closed"))
        await self._update(tenant, "plan", pb.Account(account_id=tenant.account_id, plan=tenant.plan))

    async def _suspend(self, tenant: Tenant) -> None:
        tenant.suspended = self.random.random() < 0.5
        state = pb.ACCOUNT_STATE_SUSPENDED if tenant.suspended else pb.ACCOUNT_STATE_ACTIVE
        await self._update(tenant, "state", pb.Account(account_id=tenant.account_id, state=state))

    async def _update(self, tenant: Tenant, path: str, account: pb.Account) -> None:
        request = accounts_pb2.UpdateAccountRequest(account=account, update_mask=FieldMask(paths=[path]))
        await self.change(tenant, f"UpdateAccount {path}", lambda: self.accounts("UpdateAccount", request))

    async def mutator(self) -> None:
        """Change one account for as long as there is traffic."""
        tenant = await self.tenant()
        while not self.stopping:
            await self.mutate(tenant)
            await asyncio.sleep(self.random.random() * 0.03)

    # Checks.

    async def checker(self) -> None:
        """Check secrets at random, for as long as there is traffic: half of them keys' now, others of late."""
        while not self.stopping:
            if not self.secrets:
                await asyncio.sleep(0.01)
                continue
            at_random = self.random.random()
            if at_random < 0.5 and self.tenants:
                secret = self.random.choice(self.tenants).secret
            else:
                secret = self.random.choice(self.secrets[-24:] if at_random < 0.95 else self.secrets)
            await self.check(secret, self.random.randrange(len(self.channels)))

    async def seen(self, checks: int) -> None:
        """Wait until so many checks were decided."""
        reached = asyncio.Event()
        self._awaited.append((checks, reached))
        await reached.wait()

    async def check(self, secret: str, server: int) -> None:
        """Make one check and write it down."""
        request = authorization_pb2.CheckKeyRequest(key=secret, permissions=["forms.view"], source_ip=HERE)
        stub = authorization_pb2_grpc.AuthorizationServiceStub(self.channels[server])
        began = now()
        try:
            verdict = await stub.CheckKey(request, metadata=self.metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _AGAIN:
                raise
            self.history.undecided += 1
            await asyncio.sleep(0.01)
            return
        self.history.seen.append(Seen(secret, verdict.reason, began, now(), verdict.degraded, server))
        for checks, reached in self._awaited:
            if len(self.history.seen) >= checks:
                reached.set()
