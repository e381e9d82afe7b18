"""Commands that speak to a server: their common options, the token that they show, and their calls."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, Protocol, TypeVar, get_args

import typer
from typer.models import ArgumentInfo, OptionInfo

from formgate_server.cli import encryption
from formgate_server.cli.credentials import NO_TOKEN, Token, find_token, is_loopback
from formgate_server.cli.encryption import Encryption
from formgate_server.cli.errors import CommandError, ExitCode, wrong_usage

if TYPE_CHECKING:
    import grpc
    from google.protobuf.descriptor import Descriptor

    from formgate.v1.accounts_pb2_grpc import AccountServiceStub
    from formgate.v1.authorization_pb2_grpc import AuthorizationServiceStub
    from formgate.v1.keys_pb2_grpc import KeyServiceStub

P = ParamSpec("P")
Request = TypeVar("Request")
Response = TypeVar("Response")

LARGEST_PAGE = 1_000
_LARGEST_ANSWER = 2**28
_LARGEST_PORT = 65_535
_LONGEST_TIMEOUT = 86_400.0

_PANEL = "Connection"

Address = Annotated[
    str,
    typer.Option(
        "--address", envvar="FORMGATE_ADDRESS", metavar="HOST:PORT", help="The server.", rich_help_panel=_PANEL
    ),
]
# The environment of these two is read where the token is looked for: an option must win over any variable.
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="Holds the service token to show; else FORMGATE_TOKEN, the token itself, or FORMGATE_TOKEN_FILE.",
        rich_help_panel=_PANEL,
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="The server's data folder, for the manager's token in it; else FORMGATE_DATA, or ./formgate-data.",
        rich_help_panel=_PANEL,
    ),
]
Timeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        min=0.001,
        max=_LONGEST_TIMEOUT,
        metavar="SECONDS",
        help="Wait so long for each answer.",
        rich_help_panel=_PANEL,
    ),
]
_ENCRYPTION: Mapping[str, tuple[Any, object]] = {
    "tls": (encryption.WantsTls, False),
    "tls_ca_file": (encryption.CaFile, None),
    "tls_client_cert_file": (encryption.CertFile, None),
    "tls_client_key_file": (encryption.KeyFile, None),
    "tls_server_name": (encryption.ServerName, ""),
    "insecure": (encryption.Insecure, False),
}


class Page(Protocol):
    """A listing's request: what there is to set for its next page."""

    page_size: int
    page_token: str


class PageOfThings(Protocol):
    """A listing's response: the things, and where it goes on."""

    DESCRIPTOR: Descriptor

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""


PageRequest = TypeVar("PageRequest", bound=Page)
PageResponse = TypeVar("PageResponse", bound=PageOfThings)


def _length(page: PageOfThings) -> int:
    """Return how many things are on a page, which the server may end before it has as many as were asked for."""
    things = (field.name for field in page.DESCRIPTOR.fields if field.name != "next_page_token")
    return sum(len(getattr(page, name)) for name in things)


class Server:
    """A server at ``address``, spoken to with ``token``; each call raises CommandError unless it is answered.

    ``timeout`` is in seconds, a call. ``spellings`` says how the running command spells its parameters, by name.
    """

    def __init__(
        self,
        address: str,
        token: Token,
        timeout: float,
        spellings: Mapping[str, str],
        encrypted: Encryption | None = None,
    ) -> None:
        self.address = address
        self.token = token
        self.timeout = timeout
        self.spellings = spellings
        self.encrypted = encrypted or Encryption()

    @cached_property
    def _channel(self) -> grpc.Channel:
        # gRPC's own log would stand between our lines; what it knows is in the error.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        # A year's usage by tag is one answer, and a large one.
        options: list[tuple[str, object]] = [("grpc.max_receive_message_length", _LARGEST_ANSWER)]
        if is_loopback(self.address):
            options.append(("grpc.enable_http_proxy", 0))  # a proxy of the environment is for the world outside
        return self.encrypted.channel(self.address, options)

    @cached_property
    def keys(self) -> KeyServiceStub:
        """The methods of KeyService, for ``call``."""
        from formgate.v1.keys_pb2_grpc import KeyServiceStub

        return KeyServiceStub(self._channel)

    @cached_property
    def accounts(self) -> AccountServiceStub:
        """The methods of AccountService, for ``call``."""
        from formgate.v1.accounts_pb2_grpc import AccountServiceStub

        return AccountServiceStub(self._channel)

    @cached_property
    def authorization(self) -> AuthorizationServiceStub:
        """The methods of AuthorizationService, for ``call``."""
        from formgate.v1.authorization_pb2_grpc import AuthorizationServiceStub

        return AuthorizationServiceStub(self._channel)

    def call(self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request) -> Response:
        """Call a method. Raises CommandError, explained, where there is no answer."""
        import grpc

        from formgate_server.cli.refusal import explain

        shown = () if self.token is NO_TOKEN else (("authorization", f"Bearer {self.token.value}"),)
        try:
            return method(request, timeout=self.timeout, metadata=shown)
        except grpc.RpcError as error:
            raise explain(error, self) from None

    def pages(
        self, method: grpc.UnaryUnaryMultiCallable[PageRequest, PageResponse], request: PageRequest, most: int | None
    ) -> Iterator[PageResponse]:
        """Call a listing's method for one page after the other, for at most ``most`` things (None: all)."""
        left = most
        while left is None or left > 0:
            request.page_size = LARGEST_PAGE if left is None else min(left, LARGEST_PAGE)
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token
            left = None if left is None else left - _length(page)

    def close(self) -> None:
        """End the connection, if there ever was one."""
        if "_channel" in self.__dict__:
            self._channel.close()


def remote(command: Callable[Concatenate[Server, P], None]) -> Callable[..., None]:
    """Make a command of a function whose first parameter is the server: its options, and those of the connection."""
    signature = inspect.signature(command, eval_str=True)
    own = list(signature.parameters.values())[1:]
    spellings = {parameter.name: _spelling(parameter) for parameter in own}

    @functools.wraps(command)
    def run(
        context: typer.Context,
        address: str,
        token_file: Path | None,
        data: Path | None,
        timeout: float,
        **given: Any,  # noqa: ANN401
    ) -> None:
        _refuse_empty(own, context, given)
        encrypted = Encryption(**{name: given.pop(name) for name in _ENCRYPTION})
        token = find_token(token_file, data, address, os.environ, certificate=encrypted.shows_certificate)
        server = Server(_checked(address), token, timeout, spellings, encrypted)
        try:
            command(server, **given)  # type: ignore[call-arg]  # typer gives what the signature below says
        except UnicodeEncodeError:
            # What is no UTF-8 on the command line reaches Python as lone surrogates, and no message can hold those.
            raise CommandError("what is given is not UTF-8 throughout", ExitCode.USAGE) from None
        finally:
            server.close()

    option = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[
            option("context", annotation=typer.Context),
            *(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own),
            option("address", annotation=Address, default="127.0.0.1:50051"),
            option("token_file", annotation=TokenFile, default=None),
            option("data", annotation=Data, default=None),
            option("timeout", annotation=Timeout, default=10.0),
            *(option(name, annotation=kind, default=default) for name, (kind, default) in _ENCRYPTION.items()),
        ]
    )
    run.__annotations__ = {}
    return run


def _refuse_empty(own: Iterable[inspect.Parameter], context: typer.Context, given: Mapping[str, Any]) -> None:
    """Refuse what is given, and empty: in a script, ``--account "$ACCOUNT"`` without ACCOUNT would mean all of them.

    Where an empty text is a value of its own, none given is None.
    """
    for each in own:
        if given[each.name] == "" == each.default:
            source = context.get_parameter_source(each.name)
            if source is not None and source.name == "COMMANDLINE":
                raise wrong_usage(_spelling(each), "is empty; leave it out where none is meant")


def _checked(address: str) -> str:
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) <= _LARGEST_PORT):
        raise wrong_usage("--address", f"{address} is not HOST:PORT, such as 127.0.0.1:50051")
    return address


def _spelling(parameter: inspect.Parameter) -> str:
    """Return what stands on the command line for a parameter: its option, else its metavar."""
    for info in get_args(parameter.annotation)[1:]:
        if isinstance(info, OptionInfo):
            return str(info.default)  # within Annotated, an option's first name is kept here
        if isinstance(info, ArgumentInfo):
            return str(info.metavar)
    return parameter.name
