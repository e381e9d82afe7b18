"""`formgate key`: make, look at, change and end API keys."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from formgate_server.cli import options
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import (
    ApiGroups,
    EnvironmentName,
    EtagText,
    ExpireTimeText,
    GrantTexts,
    IpRules,
    Json,
    KeyId,
    LimitTexts,
    MetadataTexts,
    Most,
    Name,
    NoteText,
    OfAccount,
    Quiet,
    TtlText,
)
from formgate_server.cli.remote import Server, remote
from formgate_server.cli.text import safe

app = typer.Typer(no_args_is_help=True, help="Make, look at, change and end API keys.")

SecretOnly = Annotated[bool, typer.Option("--secret-only", help="Print the secret and nothing else.")]
StateName = Literal["enabled", "disabled", "revoked"]


@app.command()
@remote
def create(
    server: Server,
    *,
    account_id: OfAccount,
    display_name: Name = None,
    environment: Annotated[
        EnvironmentName, typer.Option("--environment", case_sensitive=False, help="Where it may be used.")
    ] = "live",
    created_by: Annotated[str, typer.Option("--created-by", metavar="MEMBER_ID", help="Who creates it.")] = "",
    grants: GrantTexts,
    api_groups: ApiGroups,
    ip_rules: IpRules,
    limits: LimitTexts,
    expire_time: ExpireTimeText = "",
    ttl: TtlText = "",
    metadata: MetadataTexts,
    request_id: Annotated[
        str, typer.Option("--request-id", metavar="ID", help="An id of this call: repeated, it makes no second key.")
    ] = "",
    secret_only: SecretOnly = False,
    json: Json = False,
) -> None:
    """Make a key, and print its secret: the only time, unless the policy lets keys be revealed."""
    from formgate.v1.keys_pb2 import CreateKeyRequest
    from formgate.v1.resources_pb2 import Environment
    from formgate_server.cli import output, people

    request = CreateKeyRequest(
        account_id=account_id,
        display_name=display_name or "",
        environment=Environment.Value(f"ENVIRONMENT_{environment.upper()}"),
        created_by=created_by,
        grants=options.grants(grants),
        api_groups=api_groups,
        ip_rules=ip_rules,
        limits=options.limits(limits),
        expire_time=options.time("--expire-time", expire_time),
        ttl=options.duration("--ttl", ttl),
        metadata=options.pairs("--metadata", metadata),
        request_id=request_id,
    )
    response = server.call(server.keys.CreateKey, request)
    about = people.key(response.key)
    output.show_new(response, about, json=json, secret_only=secret_only, then=output.ONCE_MAYBE)


@app.command()
@remote
def get(server: Server, *, key_id: KeyId, json: Json = False) -> None:
    """Show a key."""
    from formgate.v1.keys_pb2 import GetKeyRequest
    from formgate_server.cli import output, people

    response = server.call(server.keys.GetKey, GetKeyRequest(key_id=key_id))
    output.show(response, json, lambda answer: people.key(answer.key))


@app.command("list")
@remote
def list_keys(
    server: Server,
    *,
    account_id: OfAccount,
    state: Annotated[
        StateName | None, typer.Option("--state", case_sensitive=False, help="Only those in this state.")
    ] = None,
    environment: Annotated[
        EnvironmentName | None, typer.Option("--environment", case_sensitive=False, help="Only those of this one.")
    ] = None,
    created_by: Annotated[
        str, typer.Option("--created-by", metavar="MEMBER_ID", help="Only those that this member created.")
    ] = "",
    most: Most = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """List an account's keys, oldest first."""
    from formgate.v1.keys_pb2 import ListKeysRequest
    from formgate.v1.resources_pb2 import Environment, KeyState
    from formgate_server.cli import output, people

    request = ListKeysRequest(
        account_id=account_id,
        state=KeyState.Value(f"KEY_STATE_{(state or 'unspecified').upper()}"),
        environment=Environment.Value(f"ENVIRONMENT_{(environment or 'unspecified').upper()}"),
        created_by=created_by,
    )
    pages = (page.keys for page in server.pages(server.keys.ListKeys, request, most))
    output.show_listing(pages, json=json, quiet=quiet, identify=lambda key: key.key_id, people=people.keys)


@app.command()
@remote
def update(
    server: Server,
    *,
    key_id: KeyId,
    display_name: Name = None,
    grants: GrantTexts,
    no_grants: Annotated[bool, typer.Option("--no-grants", help="Only what the policy gives.")] = False,
    api_groups: ApiGroups,
    no_api_groups: Annotated[bool, typer.Option("--no-api-groups", help="All API groups.")] = False,
    ip_rules: IpRules,
    no_ip_rules: Annotated[bool, typer.Option("--no-ip-rules", help="From anywhere.")] = False,
    limits: LimitTexts,
    no_limits: Annotated[bool, typer.Option("--no-limits", help="No limits of its own.")] = False,
    expire_time: ExpireTimeText = "",
    ttl: TtlText = "",
    no_expire_time: Annotated[bool, typer.Option("--no-expire-time", help="It never expires.")] = False,
    metadata: MetadataTexts,
    no_metadata: Annotated[bool, typer.Option("--no-metadata", help="No notes.")] = False,
    etag: EtagText = "",
    json: Json = False,
) -> None:
    """Change what a key may do, from the next check on. What is given takes the whole place of what was there."""
    from formgate.v1.keys_pb2 import UpdateKeyRequest
    from formgate.v1.resources_pb2 import Key
    from formgate_server.cli import output, people
    from formgate_server.cli.change import Change

    change = Change()
    change.set("display_name", display_name, given=display_name is not None)
    change.set("grants", options.grants(grants), clear=no_grants, option="--grant")
    change.set("api_groups", api_groups, clear=no_api_groups, option="--api-group")
    change.set("ip_rules", ip_rules, clear=no_ip_rules, option="--ip-rule")
    change.set("limits", options.limits(limits), clear=no_limits, option="--limit")
    change.set("expire_time", options.expiry(expire_time, ttl), clear=no_expire_time, option="--expire-time or --ttl")
    change.set("metadata", options.pairs("--metadata", metadata), clear=no_metadata, option="--metadata")
    request = UpdateKeyRequest(key=Key(key_id=key_id, etag=etag, **change.values), update_mask=change.mask())
    output.show(server.call(server.keys.UpdateKey, request), json, people.changed_key)


@app.command()
@remote
def revoke(server: Server, *, key_id: KeyId, reason_note: NoteText = "", json: Json = False) -> None:
    """End a key for ever. Repeating it is no error."""
    from formgate.v1.keys_pb2 import RevokeKeyRequest
    from formgate_server.cli import output, people

    request = RevokeKeyRequest(key_id=key_id, reason_note=reason_note)
    output.show(server.call(server.keys.RevokeKey, request), json, people.changed_key)


@app.command()
@remote
def disable(server: Server, *, key_id: KeyId, reason_note: NoteText = "", json: Json = False) -> None:
    """Switch a key off, until `enable`. Repeating it is no error."""
    from formgate.v1.keys_pb2 import DisableKeyRequest
    from formgate_server.cli import output, people

    request = DisableKeyRequest(key_id=key_id, reason_note=reason_note)
    output.show(server.call(server.keys.DisableKey, request), json, people.changed_key)


@app.command()
@remote
def enable(server: Server, *, key_id: KeyId, reason_note: NoteText = "", json: Json = False) -> None:
    """Switch a disabled key on. Repeating it is no error."""
    from formgate.v1.keys_pb2 import EnableKeyRequest
    from formgate_server.cli import output, people

    request = EnableKeyRequest(key_id=key_id, reason_note=reason_note)
    output.show(server.call(server.keys.EnableKey, request), json, people.changed_key)


@app.command()
@remote
def copy(
    server: Server,
    *,
    key_id: KeyId,
    display_name: Name = None,
    secret_only: SecretOnly = False,
    json: Json = False,
) -> None:
    """Make a key like another, and print its secret. Its name is the other's, unless --name says one."""
    from formgate.v1.keys_pb2 import CopyKeyRequest
    from formgate_server.cli import output, people

    response = server.call(server.keys.CopyKey, CopyKeyRequest(key_id=key_id, display_name=display_name or ""))
    about = people.key(response.key)
    output.show_new(response, about, json=json, secret_only=secret_only, then=output.ONCE_MAYBE)


@app.command()
@remote
def rotate(
    server: Server,
    *,
    key_id: KeyId,
    overlap: Annotated[
        str,
        typer.Option(
            "--overlap",
            metavar="DURATION",
            help="How long the old secret still works, such as 1d; at most 30d.",
            show_default="it ends at once",
        ),
    ] = "",
    secret_only: SecretOnly = False,
    json: Json = False,
) -> None:
    """Give a key a new secret, and print it. All else stays: its id, its rights, what is left of its limits."""
    from formgate.v1.keys_pb2 import RotateKeyRequest
    from formgate_server.cli import output, people
    from formgate_server.cli.syntax import format_duration

    lasting = options.duration("--overlap", overlap)
    response = server.call(server.keys.RotateKey, RotateKeyRequest(key_id=key_id, overlap=lasting))
    old = "The old one has ended"
    if lasting is not None and lasting.ToNanoseconds():
        old = f"The old one works for {format_duration(lasting)} more"
    then = f"{old}. {output.ONCE_MAYBE}"
    output.show_new(response, people.changed_key(response), json=json, secret_only=secret_only, then=then)


@app.command()
@remote
def reveal(server: Server, *, key_id: KeyId, secret_only: SecretOnly = False, json: Json = False) -> None:
    """Print a key's secret again, where its policy allows it. The audit trail tells that it was done, and by whom."""
    from formgate.v1.keys_pb2 import RevealKeyRequest
    from formgate_server.cli import output

    response = server.call(server.keys.RevealKey, RevealKeyRequest(key_id=key_id))
    output.stderr().print("this is in the audit trail: who revealed which key, and when", style="yellow")
    about = f"key {safe(key_id)}"
    output.show_new(response, about, json=json, secret_only=secret_only, then="Whoever has it can use the key.")


@app.command()
@remote
def delete(
    server: Server,
    *,
    key_id: KeyId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask on a terminal.")] = False,
    json: Json = False,
) -> None:
    """Delete a key for ever: checks say KEY_NOT_FOUND, and no listing has it. Usage recorded late still counts."""
    from formgate.v1.keys_pb2 import DeleteKeyRequest
    from formgate_server.cli import output, people

    if not yes and sys.stdin.isatty() and not typer.confirm(f"Delete {safe(key_id)} for ever?", err=True):
        raise CommandError(f"{key_id} is not deleted", ExitCode.REFUSED)
    response = server.call(server.keys.DeleteKey, DeleteKeyRequest(key_id=key_id))
    output.show(response, json, lambda answer: people.done(answer, {"deleted": safe(key_id)}))
