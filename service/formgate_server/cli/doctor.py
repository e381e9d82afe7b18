"""`formgate doctor`: how all that a server needs is, and what to do."""

from __future__ import annotations

import json as jsons
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from formgate_server.cli import encryption
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.options import Json

if TYPE_CHECKING:
    from formgate_server.doctor.findings import Finding
    from formgate_server.settings import Settings

_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    *,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="The server's data folder.", show_default="formgate-data"),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            envvar="FORMGATE_ADDRESS",
            metavar="HOST:PORT",
            help="Where the server is asked.",
            show_default="where FORMGATE_LISTEN says",
        ),
    ] = None,
    without_server: Annotated[
        bool, typer.Option("--without-server", help="Ask no server: it is not started yet.")
    ] = False,
    seconds: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Wait so long for each store.")
    ] = 5.0,
    tls: encryption.WantsTls = False,
    tls_ca_file: encryption.CaFile = None,
    tls_client_cert_file: encryption.CertFile = None,
    tls_client_key_file: encryption.KeyFile = None,
    tls_server_name: encryption.ServerName = "",
    json: Json = False,
) -> None:
    """Look at all that the server needs, by the settings of the environment, and say what to do.

    Ends with 1 where something fails. It writes nothing, and shows no secret; run it where the server runs.
    """
    import asyncio

    from formgate_server import log
    from formgate_server.cli.encryption import Encryption
    from formgate_server.doctor.examination import examine, failed
    from formgate_server.doctor.service import reachable

    log.set_up("error", "console")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    given = _settings(data, json=json)
    encrypted = Encryption(tls, tls_ca_file, tls_client_cert_file, tls_client_key_file, tls_server_name, insecure=True)
    asked = None if without_server else address or reachable(given.listen)
    findings = asyncio.run(
        examine(
            given,
            os.environ,
            seconds=seconds,
            connect=lambda at: encrypted.channel(at, ()),
            encrypted=encrypted.wanted,
            address=asked,
        )
    )
    _show(findings, json=json)
    if failed(findings):
        raise typer.Exit(ExitCode.REFUSED)


def _settings(data: Path | None, *, json: bool) -> Settings:
    """Return the settings; ones that will not do are all that can be said."""
    from formgate_server.cli.serve import settings
    from formgate_server.doctor.findings import fail

    try:
        return settings(data=data)
    except CommandError as error:
        _show([fail("settings", detail, "a server does not start with it") for detail in error.details], json=json)
        raise typer.Exit(ExitCode.REFUSED) from None


def _show(findings: list[Finding], *, json: bool) -> None:
    from rich.text import Text

    from formgate_server.cli import output
    from formgate_server.cli.text import safe
    from formgate_server.log import blot

    if json:
        lines = ",\n".join(
            jsons.dumps({name: blot(str(value)) for name, value in asdict(each).items()}) for each in findings
        )
        print(f"[\n{lines}\n]")  # noqa: T201
        return
    for each in findings:
        line = Text(f"{each.status:<5}", style=_STYLES[each.status])
        advice = f" → {each.advice}" if each.advice else ""
        line.append(safe(blot(f"{each.subject}: {each.text}{advice}")), style="default")
        output.show_people(line)
    counts = {status: sum(each.status == status for each in findings) for status in _STYLES}
    output.stderr().print(Text(", ".join(f"{count} {status}" for status, count in counts.items()), style="dim"))
