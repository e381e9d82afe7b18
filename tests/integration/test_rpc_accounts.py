"""AccountService: accounts and the callers' tokens."""

from __future__ import annotations

import time
from contextlib import closing
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from grpc import StatusCode

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import (
    CreateAccountRequest,
    CreateServiceTokenRequest,
    GetAccountRequest,
    ListAccountsRequest,
    ListServiceTokensRequest,
    RevokeServiceTokenRequest,
    UpdateAccountRequest,
)
from formgate.v1.keys_pb2 import ListKeysRequest
from tests.support.client import SECOND_POLICY, Client, database, new_account, new_token
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)

LIMIT = nouns.Limit(name="daily", holder=nouns.HOLDER_ACCOUNT, amount=5, calendar=nouns.CALENDAR_DAY)
SUSPENDED = nouns.ACCOUNT_STATE_SUSPENDED
UPDATES: dict[str, dict[str, Any]] = {
    "plan": {"plan": "vienna"},
    "state": {"state": SUSPENDED},
    "display_name": {"display_name": "Acme"},
    "time_zone": {"time_zone": "Europe/Vienna"},
    "limits": {"limits": [LIMIT]},
}


def test_a_new_account_is_as_asked(manager: Client) -> None:
    """Every field comes back as it was given, and is found again so."""
    fields: dict[str, Any] = {"display_name": "Acme Ö", "policy": SECOND_POLICY, "plan": "vienna"}
    fields |= {"time_zone": "Europe/Vienna", "limits": [LIMIT]}
    account_id = f"new.account_-{time.time_ns()}"
    account = manager(CreateAccountRequest(account_id=account_id, **fields)).account
    assert manager(GetAccountRequest(account_id=account_id)).account == account
    assert (account.etag, account.epoch > 0, account.HasField("create_time")) == ("v1", True, True)
    for name in ("etag", "epoch", "create_time"):
        account.ClearField(name)
    assert account == nouns.Account(account_id=account_id, state=nouns.ACCOUNT_STATE_ACTIVE, **fields)


def test_a_new_accounts_defaults(manager: Client) -> None:
    """An id is made; the default policy, its first plan, and that plan's time zone."""
    account = manager(CreateAccountRequest()).account
    assert account.account_id
    assert (account.policy, account.plan, account.time_zone) == ("default", "standard", "")
    assert account.state == nouns.ACCOUNT_STATE_ACTIVE
    assert manager(CreateAccountRequest()).account.account_id != account.account_id


def test_a_limit_of_an_account_is_the_accounts_by_default(manager: Client) -> None:
    """Its holder is ACCOUNT where it is not said, and may be KEY: a counter for each key."""
    limits = [nouns.Limit(name="a", amount=1, lifetime=True)]
    limits.append(nouns.Limit(name="b", amount=1, lifetime=True, holder=nouns.HOLDER_KEY))
    account = manager(CreateAccountRequest(limits=limits)).account
    assert [each.holder for each in account.limits] == [nouns.HOLDER_ACCOUNT, nouns.HOLDER_KEY]


def test_an_id_is_taken_once(manager: Client, account: str) -> None:
    """The second is ALREADY_EXISTS and leaves the first as it was."""
    before = manager(GetAccountRequest(account_id=account))
    refusal = manager.refusal(CreateAccountRequest(account_id=account, display_name="another"))
    assert refusal.code is StatusCode.ALREADY_EXISTS
    assert manager(GetAccountRequest(account_id=account)) == before


@pytest.mark.parametrize("field", UPDATES)
def test_an_update_changes_what_its_mask_names(manager: Client, field: str) -> None:
    """That field, the etag and the epoch change, whatever else the request holds."""
    before = manager(CreateAccountRequest(policy=SECOND_POLICY)).account
    values: dict[str, Any] = {}
    for each in UPDATES.values():
        values |= each
    began = time.time()
    asked = nouns.Account(account_id=before.account_id, policy="default", epoch=99, **values)
    done = manager(UpdateAccountRequest(account=asked, update_mask=FieldMask(paths=[field])))
    assert began <= done.effective_time.ToMicroseconds() / 1_000_000 <= time.time()
    expected = nouns.Account()
    expected.CopyFrom(before)
    expected.MergeFrom(nouns.Account(etag=done.account.etag, epoch=done.account.epoch, **UPDATES[field]))
    assert done.account == manager(GetAccountRequest(account_id=before.account_id)).account == expected
    assert done.account.epoch > before.epoch
    assert done.account.etag != before.etag


def test_etags(manager: Client, account: str) -> None:
    """A change by an older etag is ABORTED and changes nothing."""
    before = manager(GetAccountRequest(account_id=account)).account
    mask = FieldMask(paths=["display_name"])
    changed = nouns.Account(account_id=account, display_name="x", etag=before.etag)
    after = manager(UpdateAccountRequest(account=changed, update_mask=mask)).account
    refusal = manager.refusal(UpdateAccountRequest(account=changed, update_mask=mask))
    assert (refusal.code, refusal.reason) == (StatusCode.ABORTED, "ETAG_MISMATCH")
    assert manager(GetAccountRequest(account_id=account)).account == after


def test_accounts_are_listed_oldest_first(manager: Client) -> None:
    """Each once, however long a page is."""
    made = [new_account(manager) for _ in range(5)]
    for page_size in (0, 1, 3, 1_000):
        listed = [each.account_id for each in manager.all(ListAccountsRequest(page_size=page_size))]
        assert [each for each in listed if each in made] == made
        assert len(set(listed)) == len(listed)


def test_tokens_of_other_listings_are_refused(manager: Client, account: str) -> None:
    """A page token leads on in the listing that gave it, in no other."""
    new_account(manager)
    new_token(manager, nouns.SERVICE_ROLE_CHECKER)
    new_token(manager, nouns.SERVICE_ROLE_CHECKER)
    of_accounts = manager(ListAccountsRequest(page_size=1)).next_page_token
    of_tokens = manager(ListServiceTokensRequest(page_size=1)).next_page_token
    for wrong in (
        ListAccountsRequest(page_token=of_tokens),
        ListServiceTokensRequest(page_token=of_accounts),
        ListKeysRequest(account_id=account, page_token=of_accounts),
    ):
        assert manager.refusal(wrong).fields == ("page_token",)


def test_service_tokens(rpc_server: Server, manager: Client, account: str) -> None:
    """A token is as asked, lasts a year where it is not said, is told once, and repeating its revocation is OK."""
    request = CreateServiceTokenRequest(display_name="gate", role=nouns.SERVICE_ROLE_CHECKER, account_id=account)
    made = manager(request)
    token = made.service_token
    assert (token.display_name, token.role, token.account_id) == ("gate", nouns.SERVICE_ROLE_CHECKER, account)
    assert token.expire_time.seconds - token.create_time.seconds == 365 * 86_400
    assert not token.HasField("revoke_time")
    assert token in manager.all(ListServiceTokensRequest(page_size=7))
    revoked = manager(RevokeServiceTokenRequest(token_id=token.token_id)).service_token
    assert revoked.HasField("revoke_time")
    assert manager(RevokeServiceTokenRequest(token_id=token.token_id)).service_token == revoked
    assert revoked in manager.all(ListServiceTokensRequest())
    with closing(database(rpc_server)) as opened:
        query = "SELECT action FROM audit_events WHERE target = ? ORDER BY sequence"
        actions = [action for (action,) in opened.execute(query, (f"service_tokens/{token.token_id}",))]
    assert actions == ["CreateServiceToken", "RevokeServiceToken"]


@pytest.mark.parametrize("ttl", [Duration(nanos=1_000), Duration(seconds=3_660 * 86_400)])
def test_a_tokens_ttl(manager: Client, ttl: Duration) -> None:
    """It counts from the creation; the shortest is a microsecond, the longest 3,660 days."""
    token = manager(CreateServiceTokenRequest(role=nouns.SERVICE_ROLE_AUDITOR, ttl=ttl)).service_token
    lasts = token.expire_time.ToMicroseconds() - token.create_time.ToMicroseconds()
    assert lasts == ttl.ToMicroseconds()


def test_a_token_for_an_account_that_there_is_not(manager: Client) -> None:
    """It would see nothing: NOT_FOUND."""
    request = CreateServiceTokenRequest(role=nouns.SERVICE_ROLE_CHECKER, account_id="nobody")
    assert manager.refusal(request).code is StatusCode.NOT_FOUND
