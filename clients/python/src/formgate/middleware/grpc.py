"""For servers of grpcio, of threads and of asyncio.

::

    rules = [
        OpenMethod("/grpc.health.v1.Health/*"),
        Method("/sites.v1.Sites/GetSite", permissions=["sites.read"], resources=["sites/{site_id}"]),
    ]
    server = grpc.server(pool, interceptors=[FormgateInterceptor(Client(), rules)])
    server = grpc.aio.server(interceptors=[FormgateAioInterceptor(AsyncClient(), rules)])

A placeholder is a field of the request, ``{site.id}`` of a message in it. What no rule names is denied. The verdict is
``current_verdict()``. A stream is asked for once, by its first message where a resource is in it; one that goes on to
another resource ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from inspect import isawaitable
from typing import Any, NoReturn, TypeAlias, cast

import grpc

from formgate.middleware.current import current_verdict
from formgate.middleware.current import verdict as current
from formgate.middleware.gate import Gate, Method, MethodRule, OpenMethod, Refusal
from formgate.verdict import Verdict

__all__ = ["FormgateAioInterceptor", "FormgateInterceptor", "Method", "OpenMethod", "current_verdict"]

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour = Callable[..., Any]


class FormgateInterceptor(grpc.ServerInterceptor):
    """Lets a call through if its rule allows it; for ``grpc.server``."""

    def __init__(  # noqa: PLR0913 - its settings
        self,
        client: Any,  # noqa: ANN401 - a Client, or FakeFormgate's
        rules: Iterable[MethodRule],
        *,
        trusted_proxies: Iterable[str] = (),
        key_header: str = "",
        domain: str = "formgate",
        exact_reasons: bool = False,
    ) -> None:
        """Ask ``client``.

        ``trusted_proxies``: whose x-forwarded-for is believed. ``key_header``: the metadata that holds the key, if not
        ``authorization``. ``domain``: that of a denial's ErrorInfo. ``exact_reasons``: whether callers are told why a
        key is refused, even where its policy words several reasons alike. Raises ValueError for rules that can not be
        meant.
        """
        self._client = client
        self._gate = Gate(rules, trusted_proxies, key_header, domain, exact_reasons=exact_reasons)

    def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:  # noqa: ANN401 - as grpcio has it
        """Put the question before the handler."""
        handler: Handler | None = continuation(handler_call_details)
        if handler is None:
            return None
        rule = self._gate.find(handler_call_details.method)
        if isinstance(rule, OpenMethod):
            return handler
        return _rebuilt(handler, lambda inner: self._guarded(inner, handler, rule))

    def _guarded(self, inner: Behaviour, handler: Handler, rule: Method | Refusal) -> Behaviour:
        def one(request: Any, context: grpc.ServicerContext) -> Any:  # noqa: ANN401 - messages of any kind
            request, verdict = self._admit(rule, request, context, streams=bool(handler.request_streaming))
            current.set(verdict)
            try:
                return inner(request, context)
            finally:
                current.set(None)

        def many(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: ANN401 - the same
            request, verdict = self._admit(rule, request, context, streams=bool(handler.request_streaming))
            current.set(verdict)
            try:
                yield from inner(request, context)
            finally:
                current.set(None)

        return many if handler.response_streaming else one

    def _admit(
        self,
        rule: Method | Refusal,
        request: Any,  # noqa: ANN401 - the same
        context: grpc.ServicerContext,
        *,
        streams: bool,
    ) -> tuple[Any, Verdict]:
        """Return the request, or the stream, for the handler, and the verdict; a denial ends the call here."""
        if isinstance(rule, Refusal):
            _end(context, rule)
        first = request
        if streams and rule.reads_message:
            self._refuse_nobody(rule, context)
            first = next(request, None)
            if first is None:
                _end(context, self._gate.empty())
        answer = self._ask(rule, first, context)
        if isinstance(answer, Refusal):
            _end(context, answer)
        if streams and rule.reads_message:
            request = self._watched(rule, first, request, context)
        return request, answer

    def _refuse_nobody(self, rule: Method, context: grpc.ServicerContext) -> None:
        """End a call that shows no key: its first message may never come, and a thread would wait for it."""
        asker = self._gate.asker(context.invocation_metadata(), context.peer())
        if not asker.key and not asker.authorization.strip():
            try:  # the words are the service's; without a credential it looks at nothing else
                refusal = self._gate.refusal(self._client.check(**self._gate.asked_by_nobody(rule, asker)))
            except Exception as error:  # noqa: BLE001 - never through
                refusal = self._gate.failed(error, asker)
            if refusal is not None:
                _end(context, refusal)

    def _ask(self, rule: Method, message: Any, context: grpc.ServicerContext) -> Verdict | Refusal:  # noqa: ANN401
        asker = self._gate.asker(context.invocation_metadata(), context.peer())
        try:
            verdict = self._client.check(**self._gate.asked(rule, message, asker))
            return self._gate.refusal(verdict) or cast(Verdict, verdict)
        except Exception as error:  # noqa: BLE001 - never through
            return self._gate.failed(error, asker)

    def _watched(
        self,
        rule: Method,
        first: Any,  # noqa: ANN401 - the same
        rest: Iterator[Any],
        context: grpc.ServicerContext,
    ) -> Iterator[Any]:
        resources = rule.resources_of(first)
        yield first
        for message in rest:
            refusal = self._gate.moved(rule, message, resources)
            if refusal is not None:
                _end(context, refusal)
            yield message


class FormgateAioInterceptor(grpc.aio.ServerInterceptor):
    """Lets a call through if its rule allows it; for ``grpc.aio.server`` with ``async`` handlers."""

    def __init__(  # noqa: PLR0913 - its settings
        self,
        client: Any,  # noqa: ANN401 - an AsyncClient, or FakeFormgate's
        rules: Iterable[MethodRule],
        *,
        trusted_proxies: Iterable[str] = (),
        key_header: str = "",
        domain: str = "formgate",
        exact_reasons: bool = False,
    ) -> None:
        """Ask ``client``; the rest is as in ``FormgateInterceptor``."""
        self._client = client
        self._gate = Gate(rules, trusted_proxies, key_header, domain, exact_reasons=exact_reasons)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:  # noqa: ANN401 - as grpcio has it
        """Put the question before the handler."""
        handler: Handler | None = await continuation(handler_call_details)
        if handler is None:
            return None
        rule = self._gate.find(handler_call_details.method)
        if isinstance(rule, OpenMethod):
            return handler
        return _rebuilt(handler, lambda inner: self._guarded(inner, handler, rule))

    def _guarded(self, inner: Behaviour, handler: Handler, rule: Method | Refusal) -> Behaviour:
        async def one(request: Any, context: Any) -> Any:  # noqa: ANN401 - messages of any kind
            request, context, verdict = await self._admit(rule, request, context, streams=handler.request_streaming)
            token = current.set(verdict)
            try:
                return await inner(request, context)
            finally:
                current.reset(token)

        async def many(request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ANN401 - the same
            request, context, verdict = await self._admit(rule, request, context, streams=handler.request_streaming)
            current.set(verdict)  # every call has a task, and so a context, of its own
            answers = inner(request, context)
            if isawaitable(answers):
                await answers  # it writes to the context by itself
                return
            async for answer in answers:
                yield answer

        return many if handler.response_streaming else one

    async def _admit(
        self,
        rule: Method | Refusal,
        request: Any,  # noqa: ANN401 - the same
        context: Any,  # noqa: ANN401 - that of grpc.aio
        *,
        streams: bool,
    ) -> tuple[Any, Any, Verdict]:
        """Return the request, or the stream, and the context for the handler, and the verdict. A denial ends it."""
        if isinstance(rule, Refusal):
            raise await _abort(context, rule)
        first = request
        if streams and rule.reads_message:
            first = await anext(aiter(request), None)
            if first is None:
                raise await _abort(context, self._gate.empty())
        answer = await self._ask(rule, first, context)
        if isinstance(answer, Refusal):
            raise await _abort(context, answer)
        if streams and rule.reads_message:
            request = self._watched(rule, first, aiter(request), context)
            context = _Reading(context, request)
        return request, context, answer

    async def _ask(self, rule: Method, message: Any, context: Any) -> Verdict | Refusal:  # noqa: ANN401
        asker = self._gate.asker(context.invocation_metadata(), context.peer())
        try:
            verdict = await self._client.check(**self._gate.asked(rule, message, asker))
            return self._gate.refusal(verdict) or cast(Verdict, verdict)
        except Exception as error:  # noqa: BLE001 - never through
            return self._gate.failed(error, asker)

    async def _watched(
        self,
        rule: Method,
        first: Any,  # noqa: ANN401 - the same
        rest: AsyncIterator[Any],
        context: Any,  # noqa: ANN401 - the same
    ) -> AsyncIterator[Any]:
        resources = rule.resources_of(first)
        yield first
        async for message in rest:
            refusal = self._gate.moved(rule, message, resources)
            if refusal is not None:
                raise await _abort(context, refusal)
            yield message


class _Reading:
    """A call's context whose ``read`` takes from the stream that is watched, too."""

    def __init__(self, context: Any, requests: AsyncIterator[Any]) -> None:  # noqa: ANN401 - that of grpc.aio
        self._context = context
        self._requests = requests

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the same
        return getattr(self._context, name)

    async def read(self) -> Any:  # noqa: ANN401 - a message, or EOF
        """Return the next message."""
        return await anext(self._requests, grpc.aio.EOF)


def _rebuilt(handler: Handler, around: Callable[[Behaviour], Behaviour]) -> Handler:
    """Return the handler with something around what it does."""
    makers: Mapping[tuple[bool, bool], tuple[Any, Any]] = {
        (False, False): (grpc.unary_unary_rpc_method_handler, handler.unary_unary),
        (False, True): (grpc.unary_stream_rpc_method_handler, handler.unary_stream),
        (True, False): (grpc.stream_unary_rpc_method_handler, handler.stream_unary),
        (True, True): (grpc.stream_stream_rpc_method_handler, handler.stream_stream),
    }
    make, inner = makers[bool(handler.request_streaming), bool(handler.response_streaming)]
    made: Handler = make(around(inner), handler.request_deserializer, handler.response_serializer)
    return made


def _end(context: grpc.ServicerContext, refusal: Refusal) -> NoReturn:
    context.set_trailing_metadata(refusal.trailing)
    context.abort(refusal.code, refusal.message)
    raise AssertionError("abort has not raised")


async def _abort(context: Any, refusal: Refusal) -> Exception:  # noqa: ANN401 - that of grpc.aio
    await context.abort(refusal.code, refusal.message, refusal.trailing)
    return AssertionError("abort has not raised")
