"""`formgate token`: the credentials that calling services show."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from formgate_server.cli import options
from formgate_server.cli.options import Json, Most, Name, Quiet
from formgate_server.cli.remote import Server, remote

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke service tokens, which calling services show.")

RoleName = Literal["checker", "manager", "auditor"]


@app.command()
@remote
def create(
    server: Server,
    *,
    role: Annotated[
        RoleName,
        typer.Option(
            "--role",
            case_sensitive=False,
            help="checker: checks keys and records usage; manager: everything; auditor: reads only.",
        ),
    ],
    display_name: Name = None,
    account_id: Annotated[
        str, typer.Option("--account", metavar="ACCOUNT_ID", help="The only account that it sees.")
    ] = "",
    policy: Annotated[str, typer.Option("--policy", help="The only policy whose accounts and keys it sees.")] = "",
    ttl: Annotated[
        str, typer.Option("--ttl", metavar="DURATION", help="In how long it expires.", show_default="365d")
    ] = "",
    secret_only: Annotated[bool, typer.Option("--secret-only", help="Print the token and nothing else.")] = False,
    json: Json = False,
) -> None:
    """Make a token for a calling service, and print it: the only time."""
    from formgate.v1.accounts_pb2 import CreateServiceTokenRequest
    from formgate.v1.resources_pb2 import ServiceRole
    from formgate_server.cli import output, people

    request = CreateServiceTokenRequest(
        display_name=display_name or "",
        role=ServiceRole.Value(f"SERVICE_ROLE_{role.upper()}"),
        account_id=account_id,
        policy=policy,
        ttl=options.duration("--ttl", ttl),
    )
    response = server.call(server.accounts.CreateServiceToken, request)
    output.show_new(response, people.token(response.service_token), json=json, secret_only=secret_only)


@app.command("list")
@remote
def list_tokens(server: Server, *, most: Most = None, quiet: Quiet = False, json: Json = False) -> None:
    """List the tokens, oldest first, ended ones too."""
    from formgate.v1.accounts_pb2 import ListServiceTokensRequest
    from formgate_server.cli import output, people

    found = server.pages(server.accounts.ListServiceTokens, ListServiceTokensRequest(), most)
    pages = (page.service_tokens for page in found)
    output.show_listing(pages, json=json, quiet=quiet, identify=lambda token: token.token_id, people=people.tokens)


@app.command()
@remote
def revoke(
    server: Server,
    *,
    token_id: Annotated[str, typer.Argument(metavar="TOKEN_ID", help="The token's id, not the token.")],
    json: Json = False,
) -> None:
    """End a token within a second. Repeating it is no error."""
    from formgate.v1.accounts_pb2 import RevokeServiceTokenRequest
    from formgate_server.cli import output, people

    response = server.call(server.accounts.RevokeServiceToken, RevokeServiceTokenRequest(token_id=token_id))
    output.show(response, json, lambda answer: people.token(answer.service_token))
