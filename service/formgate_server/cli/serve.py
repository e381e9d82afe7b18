"""`formgate serve` and `formgate migrate`: the server itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from formgate_server.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    from formgate_server.settings import Settings

# The environment is read by the settings, not here; so are the defaults set there. An option that is not given is None.
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The folder of all that it keeps.", show_default="formgate-data"),
]


def serve(
    *,
    data: Data = None,
    database_pool: Annotated[
        int | None,
        typer.Option(
            "--database-pool", metavar="N", help="How many connections to PostgreSQL, at most.", show_default="10"
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help="Where gRPC is served; port 0 picks one.",
            show_default="127.0.0.1:50051",
        ),
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            "--http",
            metavar="HOST:PORT",
            help="Where livez, readyz and metrics are served; port 0 picks one.",
            show_default="127.0.0.1:9090",
        ),
    ] = None,
    auth_http: Annotated[
        str | None,
        typer.Option(
            "--auth-http",
            metavar="HOST:PORT",
            help="Where nginx, Traefik and Caddy ask over HTTP; port 0 picks one. Else nowhere.",
        ),
    ] = None,
    insecure: Annotated[
        bool | None,
        typer.Option("--insecure", help="Listen beyond this machine, too, without TLS.", show_default=False),
    ] = None,
    tls_cert_file: Annotated[
        Path | None,
        typer.Option(
            "--tls-cert-file", metavar="FILE", help="gRPC's certificate, then its issuers', PEM. Read again on change."
        ),
    ] = None,
    tls_key_file: Annotated[
        Path | None, typer.Option("--tls-key-file", metavar="FILE", help="The certificate's private key, PEM.")
    ] = None,
    tls_client_ca_file: Annotated[
        Path | None,
        typer.Option(
            "--tls-client-ca-file", metavar="FILE", help="Who must have issued every client's certificate, PEM."
        ),
    ] = None,
    tls_identities_file: Annotated[
        Path | None,
        typer.Option(
            "--tls-identities-file",
            metavar="FILE",
            help="Which names of client certificates may do what without a token, TOML.",
        ),
    ] = None,
    max_request_bytes: Annotated[
        int | None,
        typer.Option("--max-request-bytes", metavar="N", help="How large a request may be.", show_default="8388608"),
    ] = None,
    max_response_bytes: Annotated[
        int | None,
        typer.Option("--max-response-bytes", metavar="N", help="How large an answer may be.", show_default="268435456"),
    ] = None,
    max_concurrent_streams: Annotated[
        int | None,
        typer.Option(
            "--max-concurrent-streams",
            metavar="N",
            help="How many calls may be under way on one connection; more wait at the client.",
            show_default="1000",
        ),
    ] = None,
    max_connections: Annotated[
        int | None,
        typer.Option(
            "--max-connections",
            metavar="N",
            help="How many connections a process takes; more are closed at once.",
            show_default="10000",
        ),
    ] = None,
    policy_dir: Annotated[
        Path | None, typer.Option("--policy-dir", metavar="DIR", help="A folder with policies of your own, *.toml.")
    ] = None,
    pepper_file: Annotated[
        Path | None,
        typer.Option("--pepper-file", metavar="FILE", help="Peppers: 64 hex digits a line, the newest first."),
    ] = None,
    sealing_key_file: Annotated[
        Path | None,
        typer.Option(
            "--sealing-key-file",
            metavar="FILE",
            help="Sealing keys of secrets that can be shown again: 64 hex digits a line, the newest first.",
        ),
    ] = None,
    bootstrap_token_file: Annotated[
        Path | None,
        typer.Option("--bootstrap-token-file", metavar="FILE", help="A first manager's token: one line."),
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"] | None,
        typer.Option("--log-level", case_sensitive=False, help="From where on to log.", show_default="info"),
    ] = None,
    log_format: Annotated[
        Literal["console", "json"] | None,
        typer.Option(
            "--log-format", case_sensitive=False, help="How to log.", show_default="json unless on a terminal"
        ),
    ] = None,
    log_allowed_sample: Annotated[
        float | None,
        typer.Option(
            "--log-allowed-sample",
            metavar="SHARE",
            help="The share of checks that allow to log; denials are logged anyway.",
            show_default="0.001",
        ),
    ] = None,
    log_calls_per_second: Annotated[
        float | None,
        typer.Option(
            "--log-calls-per-second",
            metavar="N",
            help="How many denials, and how many failed calls, to log a second.",
            show_default="20",
        ),
    ] = None,
    tracing: Annotated[
        bool | None,
        typer.Option("--tracing", help="Send traces by OTLP, as OTEL_... in the environment says.", show_default=False),
    ] = None,
    key_cache_size: Annotated[
        int | None,
        typer.Option("--key-cache-size", metavar="N", help="How many keys to keep in memory.", show_default="200000"),
    ] = None,
    drain_seconds: Annotated[
        float | None,
        typer.Option(
            "--drain-seconds",
            metavar="SECONDS",
            help="How long calls under way may take to end on SIGTERM.",
            show_default="10",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="How many processes serve; several need PostgreSQL and Redis.",
            show_default="1",
        ),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            metavar="N",
            help="How many processes, on all machines, share the limits when Redis is down; else as many as workers.",
            show_default=False,
        ),
    ] = None,
    redis_timeout: Annotated[
        float | None,
        typer.Option(
            "--redis-timeout",
            metavar="SECONDS",
            help="How long Redis may take before a check goes on without it.",
            show_default="0.25",
        ),
    ] = None,
    redis_wait_replicas: Annotated[
        int | None,
        typer.Option(
            "--redis-wait-replicas",
            metavar="N",
            help="How many replicas must have what a check has charged before it is answered.",
            show_default="0",
        ),
    ] = None,
    max_staleness: Annotated[
        float | None,
        typer.Option(
            "--max-staleness",
            metavar="SECONDS",
            help="After how long a change is in effect that could not be published.",
            show_default="30",
        ),
    ] = None,
    database_grace: Annotated[
        float | None,
        typer.Option(
            "--database-grace",
            metavar="SECONDS",
            help="How long known keys go on while the database is away.",
            show_default="600",
        ),
    ] = None,
    max_connection_age_seconds: Annotated[
        float | None,
        typer.Option(
            "--max-connection-age-seconds",
            metavar="SECONDS",
            help="After how long a client is asked to connect anew, a tenth more or less.",
            show_default="300",
        ),
    ] = None,
    invalid_attempts_per_minute: Annotated[
        int | None,
        typer.Option(
            "--invalid-attempts-per-minute",
            metavar="N",
            help="How many keys that there are not one address may show; 0: any number.",
            show_default="60",
        ),
    ] = None,
    unknown_keys_per_second: Annotated[
        int | None,
        typer.Option(
            "--unknown-keys-per-second",
            metavar="N",
            help="How often a process looks in the database for keys that there are not.",
            show_default="200",
        ),
    ] = None,
    usage_days: Annotated[
        int | None,
        typer.Option(
            "--usage-days", metavar="N", help="How many days to keep usage records, at least 35.", show_default="35"
        ),
    ] = None,
    usage_months: Annotated[
        int | None,
        typer.Option(
            "--usage-months", metavar="N", help="How many months to keep the sums of usage.", show_default="25"
        ),
    ] = None,
) -> None:
    """Serve: with no option, everything on this machine, in ./formgate-data.

    Each option is also a variable of the environment: --policy-dir is FORMGATE_POLICY_DIR. Only there are
    FORMGATE_DATABASE_URL and FORMGATE_REDIS_URL: they hold passwords.
    """
    given = settings(**locals())
    # Else gRPC writes a line of its own, which is no JSON, about every stranger whose TLS handshake fails.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from formgate_server.server import serve as run

    raise typer.Exit(run(given))


def migrate(
    *,
    data: Data = None,
    restored: Annotated[
        bool,
        typer.Option("--restored", help="It was put back from a backup: nothing that was known of it counts any more."),
    ] = False,
) -> None:
    """Bring the database to this version's form. `serve` does that by itself in the data folder.

    PostgreSQL, FORMGATE_DATABASE_URL, is brought there by this command only.
    """
    given = settings(data=data)
    from formgate_server.server import migrate as run
    from formgate_server.truth import StartError

    try:
        run(given)
        if restored:
            from formgate_server.cli.restored import renew

            renew(given)
    except StartError as error:
        raise CommandError(str(error), ExitCode.REFUSED) from None


def settings(**options: Any) -> Settings:  # noqa: ANN401 - the settings say what they take
    """Return the settings: what the options say, else the environment. Raises CommandError naming what is wrong."""
    from pydantic import ValidationError

    from formgate_server.settings import Settings

    try:
        return Settings(**{name: value for name, value in options.items() if value is not None})
    except ValidationError as error:
        # Never what was given: it may hold a password.
        details = [_told(each) for each in error.errors(include_url=False, include_context=False, include_input=False)]
        raise CommandError("these settings will not do", ExitCode.USAGE, details=details) from None


def _told(problem: Any) -> str:  # noqa: ANN401 - pydantic's
    message: str = problem["msg"].removeprefix("Value error, ")
    if not problem["loc"]:
        return message
    name = str(problem["loc"][0])
    return f"--{name.replace('_', '-')} (FORMGATE_{name.upper()}): {message}"
