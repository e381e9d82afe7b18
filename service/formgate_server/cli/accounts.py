"""`formgate account`: make, look at and change accounts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from formgate_server.cli import options
from formgate_server.cli.options import AccountId, AccountLimitTexts, EtagText, Json, Most, Name, Quiet
from formgate_server.cli.remote import Server, remote

if TYPE_CHECKING:
    from formgate_server.cli.change import Change

app = typer.Typer(no_args_is_help=True, help="Make, look at and change accounts, whose the keys are.")

Plan = Annotated[str | None, typer.Option("--plan", help="One of the policy's plans.", show_default=False)]
TimeZone = Annotated[
    str | None,
    typer.Option(
        "--time-zone", metavar="NAME", help="Whose days and months count, such as Europe/Vienna.", show_default=False
    ),
]


@app.command()
@remote
def create(
    server: Server,
    *,
    account_id: Annotated[
        str, typer.Argument(metavar="ACCOUNT_ID", help="Its id; one is made where none is given.")
    ] = "",
    display_name: Name = None,
    policy: Annotated[str, typer.Option("--policy", help="Whose promises its keys keep, for good.")] = "",
    plan: Plan = None,
    time_zone: TimeZone = None,
    limits: AccountLimitTexts,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print its id only.")] = False,
    json: Json = False,
) -> None:
    """Make an account."""
    from formgate.v1.accounts_pb2 import CreateAccountRequest
    from formgate_server.cli import output, people

    request = CreateAccountRequest(
        account_id=account_id,
        display_name=display_name or "",
        policy=policy,
        plan=plan or "",
        time_zone=time_zone or "",
        limits=options.limits(limits),
    )
    response = server.call(server.accounts.CreateAccount, request)
    if quiet:
        output.show_ids([response.account.account_id])
    else:
        output.show(response, json, lambda answer: people.account(answer.account))


@app.command()
@remote
def get(server: Server, *, account_id: AccountId, json: Json = False) -> None:
    """Show an account."""
    from formgate.v1.accounts_pb2 import GetAccountRequest
    from formgate_server.cli import output, people

    response = server.call(server.accounts.GetAccount, GetAccountRequest(account_id=account_id))
    output.show(response, json, lambda answer: people.account(answer.account))


@app.command("list")
@remote
def list_accounts(server: Server, *, most: Most = None, quiet: Quiet = False, json: Json = False) -> None:
    """List the accounts, oldest first."""
    from formgate.v1.accounts_pb2 import ListAccountsRequest
    from formgate_server.cli import output, people

    pages = (page.accounts for page in server.pages(server.accounts.ListAccounts, ListAccountsRequest(), most))
    output.show_listing(
        pages, json=json, quiet=quiet, identify=lambda account: account.account_id, people=people.accounts
    )


@app.command()
@remote
def update(
    server: Server,
    *,
    account_id: AccountId,
    display_name: Name = None,
    plan: Plan = None,
    time_zone: TimeZone = None,
    no_time_zone: Annotated[bool, typer.Option("--no-time-zone", help="The plan's time zone.")] = False,
    limits: AccountLimitTexts,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="The plan's limits only.")] = False,
    etag: EtagText = "",
    json: Json = False,
) -> None:
    """Change an account, from the next check on. What is given takes the whole place of what was there."""
    from formgate_server.cli.change import Change

    change = Change()
    change.set("display_name", display_name, given=display_name is not None)
    change.set("plan", plan, given=plan is not None)
    change.set("time_zone", time_zone, clear=no_time_zone, option="--time-zone")
    change.set("limits", options.limits(limits), clear=no_limits, option="--limit")
    _update(server, account_id, change, etag, json)


@app.command()
@remote
def suspend(server: Server, *, account_id: AccountId, etag: EtagText = "", json: Json = False) -> None:
    """Deny every check of an account's keys, until `activate`."""
    _set_state(server, account_id, "ACCOUNT_STATE_SUSPENDED", etag, json)


@app.command()
@remote
def activate(server: Server, *, account_id: AccountId, etag: EtagText = "", json: Json = False) -> None:
    """Serve a suspended account's keys again."""
    _set_state(server, account_id, "ACCOUNT_STATE_ACTIVE", etag, json)


def _set_state(server: Server, account_id: str, state: str, etag: str, json: bool) -> None:
    from formgate.v1.resources_pb2 import AccountState
    from formgate_server.cli.change import Change

    change = Change()
    change.set("state", AccountState.Value(state))
    _update(server, account_id, change, etag, json)


def _update(server: Server, account_id: str, change: Change, etag: str, json: bool) -> None:
    from formgate.v1.accounts_pb2 import UpdateAccountRequest
    from formgate.v1.resources_pb2 import Account
    from formgate_server.cli import output, people

    account = Account(account_id=account_id, etag=etag, **change.values)
    request = UpdateAccountRequest(account=account, update_mask=change.mask())
    output.show(server.call(server.accounts.UpdateAccount, request), json, people.changed_account)
