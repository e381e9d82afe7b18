"""`formgate member`: the users of an account, whose rights its keys may inherit."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from formgate_server.cli.options import AccountId, Json, Most, Quiet
from formgate_server.cli.remote import Server, remote
from formgate_server.cli.text import safe

app = typer.Typer(
    no_args_is_help=True, help="Set, remove and list an account's members, whose rights keys may inherit."
)

RoleName = Literal["member", "admin", "global_admin"]
LevelName = Literal["read", "write", "manage"]
DispositionName = Literal["keep", "disable", "revoke"]

MemberId = Annotated[str, typer.Argument(metavar="MEMBER_ID", help="The member's id, as the account has it.")]


@app.command("set")
@remote
def set_member(
    server: Server,
    *,
    account_id: AccountId,
    member_id: MemberId,
    role: Annotated[RoleName, typer.Option("--role", case_sensitive=False, help="Its standing.")] = "member",
    permissions: Annotated[
        list[str],
        typer.Option(
            "--permission",
            default_factory=list,
            show_default=False,
            metavar="NAME",
            help="What it may do: forms.view, forms.* or *. Repeatable.",
        ),
    ],
    level: Annotated[
        LevelName | None,
        typer.Option("--level", case_sensitive=False, help="A level of the policy, for all that is below it."),
    ] = None,
    json: Json = False,
) -> None:
    """Add a member, or replace all its rights: what is not given, it has no more. The next check decides by it."""
    from formgate.v1.accounts_pb2 import SetMemberRequest
    from formgate.v1.resources_pb2 import Level, Role
    from formgate_server.cli import output, people

    request = SetMemberRequest(
        account_id=account_id,
        member_id=member_id,
        role=Role.Value(f"ROLE_{role.upper()}"),
        permissions=permissions,
        level=Level.Value(f"LEVEL_{(level or 'unspecified').upper()}"),
    )
    output.show(server.call(server.accounts.SetMember, request), json, people.changed_member)


@app.command()
@remote
def remove(
    server: Server,
    *,
    account_id: AccountId,
    member_id: MemberId,
    key_disposition: Annotated[
        DispositionName,
        typer.Option(
            "--keys", case_sensitive=False, help="What becomes of the keys that it created.", show_default=False
        ),
    ],
    json: Json = False,
) -> None:
    """Remove a member. Keys that inherit its rights have none from the next check on, whatever --keys says."""
    from formgate.v1.accounts_pb2 import KeyDisposition, RemoveMemberRequest
    from formgate_server.cli import output, people

    request = RemoveMemberRequest(
        account_id=account_id,
        member_id=member_id,
        key_disposition=KeyDisposition.Value(f"KEY_DISPOSITION_{key_disposition.upper()}"),
    )
    removed = {"keep": "are as they were", "disable": "are disabled", "revoke": "are revoked"}[key_disposition]
    output.show(
        server.call(server.accounts.RemoveMember, request),
        json,
        lambda answer: people.done(answer, {"removed": safe(member_id), "its keys": removed}),
    )


@app.command("list")
@remote
def list_members(
    server: Server, *, account_id: AccountId, most: Most = None, quiet: Quiet = False, json: Json = False
) -> None:
    """List an account's members, oldest first."""
    from formgate.v1.accounts_pb2 import ListMembersRequest
    from formgate_server.cli import output, people

    found = server.pages(server.accounts.ListMembers, ListMembersRequest(account_id=account_id), most)
    pages = (page.members for page in found)
    output.show_listing(pages, json=json, quiet=quiet, identify=lambda member: member.member_id, people=people.members)
