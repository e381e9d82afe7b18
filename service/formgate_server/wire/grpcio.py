"""The contract over grpc.aio, with health and reflection."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, NoReturn, TypeAlias, cast

import grpc
import grpc.aio
from google.rpc import status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha._async import ReflectionServicer

from formgate_server.core.errors import FormgateError
from formgate_server.core.model import ServiceRole
from formgate_server.rpc.dispatch import Call, Dispatch, RpcError
from formgate_server.rpc.errors import to_status
from formgate_server.rpc.methods import SERVICES, Method

_DETAILS = "grpc-status-details-bin"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_Context: TypeAlias = grpc.aio.ServicerContext[Any, Any]
_EVERYBODY = frozenset(ServiceRole)
_OPTIONS = (
    ("grpc.max_receive_message_length", 8 * 1024 * 1024),
    ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share it in silence
    ("grpc.max_concurrent_streams", 10_000),
)


class GrpcServer:
    """A grpc.aio server of the contract."""

    def __init__(self, dispatch: Dispatch, methods: Iterable[Method]) -> None:
        self._server = grpc.aio.server(options=_OPTIONS)
        self._server.add_generic_rpc_handlers((_Handlers(dispatch, methods),))
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        names = [*(service.full_name for service in SERVICES), health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflected = _Reflection(dispatch, names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflected, self._server)  # type: ignore[no-untyped-call]
        self._names = ["", *(service.full_name for service in SERVICES)]

    async def start(self, address: str) -> int:
        """Listen on ``HOST:PORT`` (port 0: any free one) and return the port. Raises OSError where it is taken."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            message = f"can not listen on {address}"
            raise OSError(message) from error
        await self._server.start()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)
        return port

    async def drain(self, grace: float) -> None:
        """Take no new calls, and end those under way within ``grace`` seconds."""
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(grace)

    async def _set_health(self, status: int) -> None:
        for name in self._names:
            await self._health.set(name, status)


class _Handlers(grpc.GenericRpcHandler):
    """Finds a method by its path, and hands its bytes over: what they hold is the dispatcher's to find out."""

    def __init__(self, dispatch: Dispatch, methods: Iterable[Method]) -> None:
        self._by_path: dict[str, Any] = {
            method.path: grpc.unary_unary_rpc_method_handler(_behaviour(dispatch, method)) for method in methods
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:  # noqa: ANN401 - grpc's own
        return self._by_path.get(handler_call_details.method)


def _behaviour(dispatch: Dispatch, method: Method) -> Any:  # noqa: ANN401 - grpc's own
    async def answer(payload: bytes, context: _Context) -> bytes:
        try:
            return await dispatch(method, _call(context), payload)
        except RpcError as error:
            await _abort(context, error.status)

    return answer


async def _abort(context: _Context, status: status_pb2.Status) -> NoReturn:
    context.set_trailing_metadata(((_DETAILS, status.SerializeToString()),))
    await context.abort(_CODES[status.code], status.message)


def _call(context: _Context) -> Call:
    return Call(dict(cast("Iterable[tuple[str, str | bytes]]", context.invocation_metadata() or ())))


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
        async for response in super().ServerReflectionInfo(request_iterator, context):  # type: ignore[attr-defined]
            yield response
