"""AccountService: accounts, and the callers' tokens."""

from __future__ import annotations

from formgate.v1 import accounts_pb2 as pb
from formgate_server.core.manage_accounts import ManageAccounts
from formgate_server.core.manage_members import KeyDisposition, ManageMembers
from formgate_server.core.manage_tokens import ManageTokens
from formgate_server.core.model import Caller
from formgate_server.core.read_account import ReadAccount
from formgate_server.rpc import convert


class AccountServicer:
    """Accounts and service tokens."""

    def __init__(
        self, accounts: ManageAccounts, members: ManageMembers, read: ReadAccount, tokens: ManageTokens
    ) -> None:
        self._accounts = accounts
        self._members = members
        self._read = read
        self._tokens = tokens

    async def create_account(self, request: pb.CreateAccountRequest, caller: Caller) -> pb.CreateAccountResponse:
        """Make an account."""
        account = await self._accounts.create(caller, convert.new_account(request))
        return pb.CreateAccountResponse(account=convert.account(account))

    async def get_account(self, request: pb.GetAccountRequest, caller: Caller) -> pb.GetAccountResponse:
        """Read an account."""
        account = await self._accounts.get(caller, request.account_id)
        return pb.GetAccountResponse(account=convert.account(account))

    async def list_accounts(self, request: pb.ListAccountsRequest, caller: Caller) -> pb.ListAccountsResponse:
        """List accounts."""
        page = await self._accounts.list(caller, request.page_size, request.page_token)
        return pb.ListAccountsResponse(accounts=map(convert.account, page.rows), next_page_token=page.next_token)

    async def update_account(self, request: pb.UpdateAccountRequest, caller: Caller) -> pb.UpdateAccountResponse:
        """Change an account."""
        account, paths = request.account, convert.mask(request.update_mask)
        values = convert.account_values(account, paths)
        done = await self._accounts.update(caller, account.account_id, account.etag, paths, values)
        return pb.UpdateAccountResponse(
            account=convert.account(done.result), effective_time=convert.timestamp(done.effective_time)
        )

    async def set_member(self, request: pb.SetMemberRequest, caller: Caller) -> pb.SetMemberResponse:
        """Add a member or replace its rights."""
        done = await self._members.set(caller, convert.new_member(request))
        return pb.SetMemberResponse(
            member=convert.member(done.result), effective_time=convert.timestamp(done.effective_time)
        )

    async def remove_member(self, request: pb.RemoveMemberRequest, caller: Caller) -> pb.RemoveMemberResponse:
        """Remove a member."""
        disposition = convert.enum(KeyDisposition, request.key_disposition, "key_disposition")
        done = await self._members.remove(caller, request.account_id, request.member_id, disposition)
        return pb.RemoveMemberResponse(effective_time=convert.timestamp(done.effective_time))

    async def list_members(self, request: pb.ListMembersRequest, caller: Caller) -> pb.ListMembersResponse:
        """List an account's members."""
        page = await self._members.list(caller, request.account_id, request.page_size, request.page_token)
        return pb.ListMembersResponse(members=map(convert.member, page.rows), next_page_token=page.next_token)

    async def list_policies(self, request: pb.ListPoliciesRequest, _caller: Caller) -> pb.ListPoliciesResponse:
        """List the policies."""
        page = await self._read.policies(request.page_size, request.page_token)
        return pb.ListPoliciesResponse(policies=map(convert.policy, page.rows), next_page_token=page.next_token)

    async def get_limits(self, request: pb.GetLimitsRequest, caller: Caller) -> pb.GetLimitsResponse:
        """Tell where limits stand."""
        standings = await self._read.limits(caller, request.account_id, request.key_id)
        response = pb.GetLimitsResponse()
        for standing in standings:
            convert.tell_limit(response.limits.add(), standing)
        return response

    async def get_usage(self, request: pb.GetUsageRequest, caller: Caller) -> pb.GetUsageResponse:
        """Sum up usage."""
        buckets = await self._read.usage(caller, convert.usage_query(request))
        return pb.GetUsageResponse(buckets=map(convert.usage_bucket, buckets))

    async def list_audit_events(self, request: pb.ListAuditEventsRequest, caller: Caller) -> pb.ListAuditEventsResponse:
        """List what was changed, newest first."""
        page = await self._read.audit(caller, convert.audit_filter(request), request.page_size, request.page_token)
        events = map(convert.audit_event, page.rows)
        return pb.ListAuditEventsResponse(audit_events=events, next_page_token=page.next_token)

    async def create_service_token(
        self, request: pb.CreateServiceTokenRequest, caller: Caller
    ) -> pb.CreateServiceTokenResponse:
        """Make a service token."""
        token, secret = await self._tokens.create(caller, convert.new_token(request))
        return pb.CreateServiceTokenResponse(service_token=convert.service_token(token), secret=secret)

    async def list_service_tokens(
        self, request: pb.ListServiceTokensRequest, caller: Caller
    ) -> pb.ListServiceTokensResponse:
        """List service tokens."""
        page = await self._tokens.list(caller, request.page_size, request.page_token)
        tokens = map(convert.service_token, page.rows)
        return pb.ListServiceTokensResponse(service_tokens=tokens, next_page_token=page.next_token)

    async def revoke_service_token(
        self, request: pb.RevokeServiceTokenRequest, caller: Caller
    ) -> pb.RevokeServiceTokenResponse:
        """End a service token."""
        token = await self._tokens.revoke(caller, request.token_id)
        return pb.RevokeServiceTokenResponse(service_token=convert.service_token(token))
