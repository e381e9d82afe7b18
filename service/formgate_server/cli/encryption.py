"""How the command reaches a server: in clear on this machine, by TLS elsewhere, with a certificate where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from formgate_server.cli.credentials import is_loopback
from formgate_server.cli.errors import CommandError, ExitCode

if TYPE_CHECKING:
    import grpc

_PANEL = "Connection"


def _option(name: str, text: str, metavar: str | None = None) -> Any:  # noqa: ANN401 - typer's own
    variable = f"FORMGATE_{name.upper().replace('-', '_')}"
    return typer.Option(
        f"--{name}", envvar=variable, metavar=metavar, help=text, rich_help_panel=_PANEL, show_default=False
    )


WantsTls = Annotated[bool, _option("tls", "Speak TLS, and trust the authorities that gRPC ships.")]
CaFile = Annotated[Path | None, _option("tls-ca-file", "Speak TLS, and trust these authorities, PEM.", "FILE")]
CertFile = Annotated[Path | None, _option("tls-client-cert-file", "A certificate to show to the server, PEM.", "FILE")]
KeyFile = Annotated[Path | None, _option("tls-client-key-file", "The private key of that, PEM.", "FILE")]
ServerName = Annotated[
    str, _option("tls-server-name", "What the server's certificate is for, if not the address.", "NAME")
]
Insecure = Annotated[bool, _option("insecure", "Let the token travel in clear beyond this machine, too.")]


@dataclass(frozen=True, slots=True)
class Encryption:
    """What is given of it."""

    tls: bool = False
    tls_ca_file: Path | None = None
    tls_client_cert_file: Path | None = None
    tls_client_key_file: Path | None = None
    tls_server_name: str = ""
    insecure: bool = False

    @property
    def wanted(self) -> bool:
        """Whether TLS is to be spoken."""
        return self.tls or self.tls_ca_file is not None or self.shows_certificate

    @property
    def shows_certificate(self) -> bool:
        """Whether the command has a certificate of its own, which may stand for a token."""
        return self.tls_client_cert_file is not None

    def channel(self, address: str, options: Sequence[tuple[str, object]]) -> grpc.Channel:
        """Return a channel to HOST:PORT. Raises CommandError where it makes no sense, or would tell a token to all."""
        import grpc

        if (self.tls_client_cert_file is None) != (self.tls_client_key_file is None):
            raise CommandError("--tls-client-cert-file and --tls-client-key-file go together", ExitCode.USAGE)
        if not self.wanted:
            if not (self.insecure or is_loopback(address)):
                raise CommandError(
                    f"the token would travel in clear to {address}",
                    ExitCode.USAGE,
                    hint="say what to trust by --tls-ca-file or --tls, or allow it by --insecure",
                )
            return grpc.insecure_channel(address, options)
        if self.tls_server_name:
            options = [*options, ("grpc.ssl_target_name_override", self.tls_server_name)]
        credentials = grpc.ssl_channel_credentials(
            _read(self.tls_ca_file), _read(self.tls_client_key_file), _read(self.tls_client_cert_file)
        )
        return grpc.secure_channel(address, credentials, options)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror}", ExitCode.USAGE) from None
