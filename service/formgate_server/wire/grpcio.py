"""The contract over grpc.aio, with health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, NoReturn, TypeAlias, cast

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from grpc_reflection.v1alpha._async import ReflectionServicer

from formgate_server.core.errors import FormgateError, InvalidArgumentError, UnavailableError
from formgate_server.core.model import ServiceRole
from formgate_server.rpc.dispatch import Call, Dispatch, RpcError
from formgate_server.rpc.errors import to_status
from formgate_server.rpc.methods import SERVICES, Method
from formgate_server.wire import tls
from formgate_server.wire.port import BALANCED

_DETAILS = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_BROKEN = to_status(InvalidArgumentError("request", "is broken, or a string is not UTF-8"))
_SLOWEST_READER_SECONDS = 5.0
_LONGEST_LIBRARY_REQUEST = 1_024
"""Of health and reflection, in bytes: names are no longer, and who watches one makes us keep it."""
_SETTLE_SECONDS = 0.1
_EVERYBODY = frozenset(ServiceRole)
_LISTENERS = 16
_FEWEST_CONNECTIONS = 256
_OPTIONS = (
    # Of a call's metadata: what is larger than the first is refused now and then, larger than the second always.
    ("grpc.max_metadata_size", 8 * 1024),
    ("grpc.absolute_max_metadata_size", 16 * 1024),
    # Who connects and says nothing, or half of a TLS handshake, is closed after so long.
    ("grpc.server_handshake_timeout_ms", 20_000),
    # What a client has under way when its connection is old may still take so long; health's Watch ends with it.
    ("grpc.max_connection_age_grace_ms", 60_000),
    # A client is found dead, though its machine is gone, within so long.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Clients may ping every 10 seconds, with or without calls; one less, for those that arrive a little early.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 9_000),
)


class Limits(NamedTuple):
    """What a client may ask of a process."""

    request_bytes: int
    response_bytes: int
    streams: int
    """Calls under way on a connection; more wait at the client."""
    connections: int
    """More are closed at once: see ``_listeners``."""
    connection_age: float
    """After about so many seconds a client is asked to connect anew."""


def _listeners(connections: int) -> int:
    """Return how many listeners share a process' port, and so its connections.

    grpc.aio's server takes up one call a turn of the event loop. Of several at the same port each does, so that calls
    share turns, wake-ups and writes to Redis: half the CPU time a check (docs/adr/0014). The kernel spreads connections
    over them by chance; so each has many, or there are fewer listeners.
    """
    return max(1, min(_LISTENERS, connections // _FEWEST_CONNECTIONS))


class GrpcServer:
    """Servers of the contract by grpc.aio, all at one port."""

    def __init__(
        self,
        dispatch: Dispatch,
        methods: Iterable[Method],
        limits: Limits,
        *,
        credentials: Callable[[], grpc.ServerCredentials] | None = None,
        shared: bool = False,
    ) -> None:
        """``credentials`` makes a listener's; None: it speaks no TLS.

        ``shared``: the port is reserved, for all that are ours.
        """
        self._credentials = credentials
        listeners = _listeners(limits.connections) if shared and BALANCED else 1
        options = (
            *_OPTIONS,
            ("grpc.max_receive_message_length", limits.request_bytes),
            ("grpc.max_send_message_length", limits.response_bytes),
            ("grpc.max_concurrent_streams", limits.streams),
            ("grpc.max_allowed_incoming_connections", limits.connections // listeners),
            ("grpc.max_connection_age_ms", round(limits.connection_age * 1_000)),
            # Never of a port that is not reserved: another server must fail there, not share it in silence.
            ("grpc.so_reuseport", int(shared)),
        )
        self._gate = _Gate()
        self._health = health.aio.HealthServicer()
        names = [*(service.full_name for service in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflected = _Reflection(dispatch, names)
        handlers = (_Handlers(dispatch, methods, self._gate), *_library_handlers(self._health, reflected))
        self._servers = [grpc.aio.server(handlers=handlers, options=options) for _ in range(listeners)]
        self._names = ["", *(service.full_name for service in SERVICES)]

    async def start(self, address: str) -> int:
        """Listen on ``HOST:PORT`` (port 0, unless shared: any free one) and return the port. Raises OSError."""
        try:
            port, *_ = [self._listen(server, address) for server in self._servers]
        except RuntimeError as error:
            message = f"can not listen on {address}"
            raise OSError(message) from error
        for server in self._servers:
            await server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return port

    def _listen(self, server: grpc.aio.Server, address: str) -> int:
        if self._credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self._credentials())

    async def drain(self, grace: float, hurry: asyncio.Event, on_closed: Callable[[], None]) -> None:
        """Take no new calls, and end those under way within ``grace`` seconds, or at once when ``hurry`` is set.

        ``on_closed`` is called when nobody listens any more.
        """
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        # gRPC cancels what has arrived and is not taken up yet, which callers do not try again as they do UNAVAILABLE.
        # So for a moment all is taken up and nothing answered: whoever waits for an answer sends nothing more.
        self._gate.close()
        await asyncio.sleep(_SETTLE_SECONDS)
        stopping = self._stop(grace)
        await asyncio.sleep(0)  # it has begun: from here on, what is sent is refused before it arrives
        self._gate.open()
        on_closed()
        hurried = asyncio.create_task(hurry.wait())
        await asyncio.wait({stopping, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not stopping.done():
            await self._stop(None)
        await stopping

    def _stop(self, grace: float | None) -> asyncio.Future[Any]:
        return asyncio.gather(*(server.stop(grace) for server in self._servers))

    async def _set_health(self, status: int) -> None:
        for name in self._names:
            await self._health.set(name, status)


class _Gate:
    """Before which calls wait while it is closed."""

    def __init__(self) -> None:
        self.closed = False
        self._opened = asyncio.Event()
        self.wait = self._opened.wait

    def close(self) -> None:
        """Let calls wait."""
        self.closed = True

    def open(self) -> None:
        """Let them go on, and all that come."""
        self.closed = False
        self._opened.set()


class _Handlers(grpc.GenericRpcHandler):
    """Finds a method by its path, and hands its bytes over: what they hold is the dispatcher's to find out."""

    def __init__(self, dispatch: Dispatch, methods: Iterable[Method], gate: _Gate) -> None:
        self._by_path: dict[str, Any] = {
            method.path: grpc.stream_stream_rpc_method_handler(_streaming(dispatch, method))
            if method.is_stream
            else grpc.unary_unary_rpc_method_handler(_behaviour(dispatch, method, gate))
            for method in methods
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 - grpc's own
        return self._by_path.get(handler_call_details.method)


def _behaviour(dispatch: Dispatch, method: Method, gate: _Gate) -> Any:  # noqa: ANN401 - grpc's own
    async def answer(payload: bytes, context: _Context) -> bytes:
        if gate.closed:
            await gate.wait()
        try:
            return await dispatch(method, _call(context), payload)
        except RpcError as error:
            status = error.status
        # Not within the handler, nor with the payload: what abort raises, and all that it holds, is garbage that only
        # the collector finds.
        del payload
        return await _abort(context, status)

    return answer


def _streaming(dispatch: Dispatch, method: Method) -> Any:  # noqa: ANN401 - grpc's own
    async def answer(payloads: AsyncIterable[bytes], context: _Context) -> None:
        try:
            async with aclosing(dispatch.stream(method, _call(context), aiter(payloads))) as answers:
                async for each in answers:
                    try:
                        async with asyncio.timeout(_SLOWEST_READER_SECONDS):
                            await context.write(each)
                    except TimeoutError:
                        await answers.athrow(_too_slow())  # so that it is counted and told as it ends
        except RpcError as error:
            status = error.status
        else:
            return
        await _abort(context, status)

    return answer


def _too_slow() -> UnavailableError:
    return UnavailableError("what is told here is not read in time; call again", reason="READS_TOO_SLOWLY")


async def _abort(context: _Context, status: status_pb2.Status) -> NoReturn:
    context.set_trailing_metadata(((_DETAILS, status.SerializeToString()),))
    await context.abort(_CODES[status.code], status.message)


def _call(context: _Context) -> Call:
    sent = cast("Sequence[tuple[str, str | bytes]]", context.invocation_metadata() or ())
    metadata = dict(sent)
    if len(metadata) != len(sent):  # who sends two tokens is neither's caller: together they are one that is unknown
        for name in metadata:
            metadata[name] = ", ".join(str(value) for key, value in sent if key == name)  # as RFC 9110, 5.3 reads them
    return Call(metadata, lambda: tls.names(context.auth_context()), context.peer)


def _library_handlers(health_: health.aio.HealthServicer, reflected: _Reflection) -> Iterable[grpc.GenericRpcHandler]:
    """Register health and reflection by hand.

    As the libraries do it, a broken request raises in grpc: UNKNOWN, and a traceback in the log for every stranger.
    """

    def to_bytes(message: Message) -> bytes:
        return message.SerializeToString()

    check = grpc.unary_unary_rpc_method_handler(
        _whole(health_.Check), _decoder(health_pb2.HealthCheckRequest), to_bytes
    )
    watch = grpc.unary_stream_rpc_method_handler(
        _whole(health_.Watch), _decoder(health_pb2.HealthCheckRequest), to_bytes
    )
    info = grpc.stream_stream_rpc_method_handler(
        reflected.ServerReflectionInfo, _decoder(reflection_pb2.ServerReflectionRequest), to_bytes
    )
    yield grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check, "Watch": watch})
    yield grpc.method_handlers_generic_handler(reflection.SERVICE_NAME, {"ServerReflectionInfo": info})


def _decoder(kind: type[Message]) -> Callable[[bytes], Message | None]:
    def decode(payload: bytes) -> Message | None:
        if len(payload) > _LONGEST_LIBRARY_REQUEST:  # they keep what they are asked, and ask for no token
            return None
        try:
            return kind.FromString(payload)
        except DecodeError:
            return None

    return decode


def _whole(method: Any) -> Any:  # noqa: ANN401 - grpc's own
    async def answer(request: Message | None, context: _Context) -> Message | None:
        if request is None:
            await _abort(context, _BROKEN)
        result: Message | None = await method(request, context)
        return result

    return answer


class _Reflection(ReflectionServicer):
    """Server reflection, for callers with a token."""

    def __init__(self, dispatch: Dispatch, names: Iterable[str]) -> None:
        super().__init__(names)
        self._dispatch = dispatch

    async def ServerReflectionInfo(  # type: ignore[override]  # noqa: N802 - a generator, as the library has it too
        self,
        request_iterator: AsyncIterable[reflection_pb2.ServerReflectionRequest],
        context: _Context,
    ) -> AsyncIterator[reflection_pb2.ServerReflectionResponse]:
        try:
            await self._dispatch.caller(_call(context), _EVERYBODY)
        except FormgateError as error:
            await _abort(context, to_status(error))
        requests = _until_broken(request_iterator, context)
        async for response in super().ServerReflectionInfo(requests, context):  # type: ignore[attr-defined]
            yield response


async def _until_broken(
    requests: AsyncIterable[reflection_pb2.ServerReflectionRequest | None], context: _Context
) -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
    async for request in requests:
        if request is None:
            await _abort(context, _BROKEN)
        yield request
