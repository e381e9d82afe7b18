"""The settings: the only reader of the environment. Each is also an option of ``formgate serve``, but for URLs.

Those hold passwords, and a command line is seen by everybody on the machine.
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from formgate_server.core.prune import DAY, LONGEST_MONTH, Keep


def _address(value: str) -> str:
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:  # noqa: PLR2004 - TCP
        message = "must be HOST:PORT, such as 127.0.0.1:50051 (port 0: any free one)"
        raise ValueError(message)
    return value


def _blank_is_none(value: object) -> object:
    return None if value == "" else value


Address = Annotated[str, AfterValidator(_address)]
OptionalPath = Annotated[Path | None, BeforeValidator(_blank_is_none)]
OptionalUrl = Annotated[SecretStr | None, BeforeValidator(_blank_is_none)]

_TLS_NEEDS = (
    ("tls_cert_file", "tls_key_file"),
    ("tls_key_file", "tls_cert_file"),
    ("tls_client_ca_file", "tls_cert_file"),
    ("tls_identities_file", "tls_client_ca_file"),
)


class Settings(BaseSettings):
    """How this server runs; ``FORMGATE_`` and the name in capitals in the environment."""

    model_config = SettingsConfigDict(env_prefix="FORMGATE_", frozen=True, extra="forbid", env_ignore_empty=True)

    data: Path = Field(default=Path("formgate-data"), description="The folder of the embedded default.")
    database_url: OptionalUrl = Field(
        default=None, description="PostgreSQL instead of the folder: postgresql://user:password@host/name."
    )
    database_pool: Annotated[int, Field(ge=3, le=1_000)] = Field(
        default=10, description="How many connections to PostgreSQL a process has at the most."
    )
    redis_url: OptionalUrl = Field(default=None, description="Where the counters are; PostgreSQL asks for it.")
    redis_timeout: Annotated[float, Field(ge=0.01, le=10)] = Field(
        default=0.25, description="How many seconds Redis may take before a check goes on without it."
    )
    redis_wait_replicas: Annotated[int, Field(ge=0, le=10)] = Field(
        default=0, description="How many replicas must have what a check has charged before it is answered."
    )
    max_staleness: Annotated[float, Field(ge=1, le=3_600)] = Field(
        default=30.0, description="After how many seconds a change is in effect that could not be published."
    )
    database_grace: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=600.0, description="How many seconds known keys go on while the database is away."
    )
    listen: Address = Field(default="127.0.0.1:50051", description="Where gRPC is served, HOST:PORT.")
    http: Address = Field(default="127.0.0.1:9090", description="Where livez, readyz and metrics are, HOST:PORT.")
    auth_http: Annotated[Address | None, BeforeValidator(_blank_is_none)] = Field(
        default=None, description="Where nginx, Traefik and Caddy ask over HTTP, HOST:PORT; unset: nowhere."
    )
    insecure: bool = Field(default=False, description="Serve without TLS beyond loopback too.")
    tls_cert_file: OptionalPath = Field(
        default=None, description="gRPC's certificate and those of its issuers, PEM; with it, gRPC is TLS only."
    )
    tls_key_file: OptionalPath = Field(default=None, description="The certificate's private key, PEM.")
    tls_client_ca_file: OptionalPath = Field(
        default=None, description="Authorities, PEM, one of which must have issued every client's certificate."
    )
    tls_identities_file: OptionalPath = Field(
        default=None, description="Which names of client certificates may do what without a token, TOML."
    )
    max_request_bytes: Annotated[int, Field(ge=65_536, le=1_073_741_824)] = Field(
        default=8_388_608, description="How large a request may be."
    )
    max_response_bytes: Annotated[int, Field(ge=65_536, le=2_147_483_647)] = Field(
        default=268_435_456, description="How large an answer may be."
    )
    max_concurrent_streams: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=1_000, description="How many calls may be under way on one connection; more wait at the client."
    )
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=10_000, description="How many connections a process takes; more are closed at once."
    )
    policy_dir: OptionalPath = Field(default=None, description="A folder with policies of your own, *.toml.")
    pepper_file: OptionalPath = Field(default=None, description="Peppers, one a line, newest first, 64 hex digits.")
    sealing_key_file: OptionalPath = Field(
        default=None, description="Sealing keys of recoverable secrets, as peppers are."
    )
    bootstrap_token_file: OptionalPath = Field(default=None, description="A first manager's token, one line.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="What is logged.")
    log_format: Literal["console", "json"] | None = Field(
        default=None, description="How: console on a terminal, else json."
    )
    log_allowed_sample: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.001, description="The share of checks that allow that the log tells; denials it tells all."
    )
    log_calls_per_second: Annotated[float, Field(ge=1, le=10_000)] = Field(
        default=20.0, description="How many denials, and how many failed calls, a process logs a second."
    )
    tracing: bool = Field(default=False, description="Send traces by OTLP, as OTEL_… in the environment says.")
    key_cache_size: Annotated[int, Field(ge=1_000)] = Field(
        default=200_000, description="How many keys are kept in memory, 2 KB each at the most."
    )
    drain_seconds: Annotated[float, Field(ge=0, le=600)] = Field(
        default=10.0, description="How long calls under way may take to end on SIGTERM."
    )
    workers: Annotated[int, Field(ge=1, le=256)] = Field(
        default=1, description="How many processes serve; several need PostgreSQL and Redis."
    )
    processes: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="How many processes, on all machines, share the limits when Redis is down."
    )
    max_connection_age_seconds: Annotated[float, Field(ge=1, le=86_400)] = Field(
        default=300.0, description="After how long a client is asked to connect anew, a tenth more or less."
    )
    invalid_attempts_per_minute: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=60, description="How many keys that there are not one address may show; 0: any number."
    )
    unknown_keys_per_second: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=200, description="How often a process looks in the database for keys that there are not."
    )

    usage_days: Annotated[int, Field(ge=35, le=36_500)] = Field(
        default=35, description="How many days usage records are kept; their sums are kept longer."
    )
    usage_months: Annotated[int, Field(ge=3, le=1_200)] = Field(
        default=25, description="How many months the hourly sums of usage are kept."
    )

    @model_validator(mode="after")
    def _loopback_only(self) -> Settings:
        for name in ("listen", "http"):
            if not (self.insecure or self.serves_tls or is_loopback(getattr(self, name))):
                message = (
                    f"{name} is beyond loopback, where secrets would travel in clear: give --tls-cert-file and"
                    " --tls-key-file, or say --insecure to allow it"
                )
                raise ValueError(message)
        if self.auth_http is not None and not (self.insecure or is_loopback(self.auth_http)):
            message = (
                "auth_http is beyond loopback, where secrets would travel in clear, and it has no TLS: say --insecure"
                " to allow it"
            )
            raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _whole_tls(self) -> Settings:
        for name, needed in _TLS_NEEDS:
            if getattr(self, name) is not None and getattr(self, needed) is None:
                message = f"{name} asks for {needed}: give both or none"
                raise ValueError(message)
        return self

    @model_validator(mode="after")
    def _all_share(self) -> Settings:
        if self.processes is not None and self.processes < self.workers:
            message = "processes are all that share the limits, these workers included: there are fewer of them"
            raise ValueError(message)
        return self

    @property
    def serves_tls(self) -> bool:
        """Whether gRPC is served over TLS."""
        return self.tls_cert_file is not None

    @property
    def keep(self) -> Keep:
        """How long usage is kept."""
        return Keep(self.usage_days * DAY, self.usage_months * LONGEST_MONTH)

    @property
    def sharers(self) -> int:
        """How many processes share the limits when Redis is down."""
        return self.workers if self.processes is None else self.processes


def is_loopback(address: str) -> bool:
    """Tell whether HOST:PORT can be reached from this machine only."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
