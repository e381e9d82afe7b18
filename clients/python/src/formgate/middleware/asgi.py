"""For FastAPI, Starlette and every other ASGI application.

::

    app = FastAPI()
    app.add_middleware(
        FormgateMiddleware,
        client=AsyncClient(),
        rules=[
            Open("GET", "/health"),
            Rule("GET", "/forms/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"]),
        ],
    )

What no rule matches is denied. The verdict is ``request.scope["formgate"]``, and ``current_verdict()``.
"""

from __future__ import annotations

import inspect
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Protocol, TypeAlias

from formgate.middleware.answers import Answers
from formgate.middleware.current import current_verdict
from formgate.middleware.current import verdict as current
from formgate.middleware.guard import Asker, BadValueError, Denial, Guard, NoRuleError, checked
from formgate.middleware.rules import WEBSOCKET, ByRoute, Line, Need, Open, Resources, Rule, Values
from formgate.verdict import Verdict

__all__ = ["Answers", "ByRoute", "DeniedError", "FormgateMiddleware", "Open", "Rule", "current_verdict", "requires"]

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

_ASKING = "formgate.asking"
_POLICY_VIOLATION = 1008  # RFC 6455, 7.4.1


class AsyncChecker(Protocol):
    """What is asked: an ``AsyncClient``, or ``FakeFormgate`` in tests."""

    async def check(self, *args: Any, **asked: Any) -> Verdict:  # noqa: ANN401 - those of AsyncClient.check
        """Return the verdict; whatever is raised denies the request."""
        ...


class DeniedError(Exception):
    """A route has asked, and the request may not go on. The middleware answers it; nobody need catch it."""


class FormgateMiddleware:
    """Lets a request through if its rule allows it. It belongs next to the router, inside of what changes paths."""

    def __init__(  # noqa: PLR0913 - its settings
        self,
        app: App,
        client: AsyncChecker,
        rules: Iterable[Line],
        *,
        trusted_proxies: Iterable[str] = (),
        key_header: str = "",
        answers: Answers | None = None,
        limit_headers: bool = True,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Guard ``app``.

        ``trusted_proxies``: addresses, blocks and ``unix``, whose X-Forwarded-For is believed. ``key_header``: where
        the key is, if not in Authorization. ``limit_headers``: whether answers say RateLimit and RateLimit-Policy,
        by ``clock``, seconds since the Unix epoch. Raises ValueError for rules and proxies that can not be meant.
        """
        self._app = app
        self._client = client
        self._guard = Guard(rules, trusted_proxies, key_header, answers, limit_headers=limit_headers, clock=clock)
        self._key_header = self._guard.key_header.encode("latin-1")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Decide one request, or one WebSocket's handshake."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._app(scope, receive, send)
            return
        if kind not in {"http", "websocket"}:
            raise RuntimeError(f"nothing is known of the protocol {kind!r}: it is not let through")
        method = scope["method"].upper() if kind == "http" else WEBSOCKET
        found = self._guard.find(method, _path(scope), scope.get("raw_path") or b"")
        if isinstance(found, Denial):
            await _deny(found, scope, send)
            return
        rule = found.rule
        asking = _Asking(self._client, self._guard, self._read(scope, method))
        verdict: Verdict | None = None
        if isinstance(rule, Rule):
            answer = await asking(rule, found.values)
            if isinstance(answer, Denial):
                await _deny(answer, scope, send)
                return
            verdict = answer
        scope["formgate"] = verdict
        scope[_ASKING] = asking
        token = current.set(verdict)
        try:
            await self._go_on(scope, receive, send, asking, must_ask=isinstance(rule, ByRoute))
        finally:
            current.reset(token)

    async def _go_on(self, scope: Scope, receive: Receive, send: Send, asking: _Asking, *, must_ask: bool) -> None:
        """Run the application, and hear it only as long as nothing was denied."""
        heard = False
        denial: Denial | None = None

        async def answer(message: Message) -> None:
            nonlocal heard, denial
            if not heard and denial is None:
                denial = asking.denial
                if denial is None and must_ask and asking.verdict is None:
                    denial = self._guard.unasked()
                if denial is not None:
                    await _deny(denial, scope, send)
                    return
                heard = True
                if asking.verdict is not None and message["type"] in _BEGINNINGS:
                    fields = self._guard.fields(asking.verdict)
                    message = {**message, "headers": [*message.get("headers", ()), *_encoded(fields)]}
            if denial is None:
                await send(message)

        try:
            await self._app(scope, receive, answer)
        except DeniedError:
            if heard or asking.denial is None:
                raise
            if denial is None:
                await _deny(asking.denial, scope, send)

    def _read(self, scope: Scope, method: str) -> Asker:
        authorization = key = forwarded_for = ""
        wanted = self._key_header
        for name, value in scope["headers"]:
            if name == b"authorization":
                authorization = _joined(authorization, value)
            elif name == b"x-forwarded-for":
                forwarded_for = _joined(forwarded_for, value)
            if name == wanted:
                key = _joined(key, value)
        client = scope.get("client")
        return Asker(method, authorization, key, forwarded_for, client[0] if client else "")


_BEGINNINGS = frozenset({"http.response.start", "websocket.accept"})


class _Asking:
    """How a request's verdict is asked for: by the middleware, or by its route."""

    __slots__ = ("_client", "_guard", "asker", "denial", "verdict")

    def __init__(self, client: AsyncChecker, guard: Guard, asker: Asker) -> None:
        self._client = client
        self._guard = guard
        self.asker = asker
        self.verdict: Verdict | None = None
        """The last one that allowed."""
        self.denial: Denial | None = None

    async def __call__(self, need: Need, values: Values) -> Verdict | Denial:
        """Ask. Whatever goes wrong is a denial."""
        answer = await self._ask(need, values)
        if isinstance(answer, Denial):
            self.denial = answer
        else:
            self.verdict = answer
        return answer

    async def _ask(self, need: Need, values: Values) -> Verdict | Denial:
        try:
            asked = self._guard.asked(need, values, self.asker)
            if callable(need.resources):
                made = need.resources(values)
                asked["resources"] = checked(await made if inspect.isawaitable(made) else made)
            verdict = await self._client.check(**asked)
            return self._guard.denial(verdict) or verdict
        except BadValueError:
            return self._guard.bad_value()
        except NoRuleError:
            return self._guard.no_rule(self.asker.method)
        except Exception as error:  # noqa: BLE001 - never through
            return self._guard.unavailable(error, self.asker)


def requires(
    *permissions: str,
    resources: Resources = (),
    **others: Any,  # noqa: ANN401 - those of Rule
) -> Callable[[Any], Awaitable[Verdict]]:
    """Return what asks for a route, from within it: a dependency of FastAPI, or for any code that has the request.

    ::

        @app.get("/forms/{form_id}", dependencies=[Depends(requires("forms.read", resources=["forms/{form_id}"]))])

    Placeholders are the route's own path parameters. It needs the middleware, with a ``ByRoute`` rule for such routes,
    which lets no answer out that was not asked for.
    """
    need = Need(permissions=permissions, resources=resources, **others)

    async def dependency(request: Any) -> Verdict:  # noqa: ANN401 - Starlette's, which is not imported here
        scope: Scope = request.scope
        asking: _Asking | None = scope.get(_ASKING)
        if asking is None:
            raise RuntimeError("FormgateMiddleware is not there to ask")
        values = {name: str(value) for name, value in scope.get("path_params", {}).items()}
        answer = await asking(need, values)
        if isinstance(answer, Denial):
            raise DeniedError
        scope["formgate"] = answer
        current.set(answer)
        return answer

    if (starlette := sys.modules.get("starlette.requests")) is not None:
        # FastAPI hands a dependency the request by its parameter's type, and nobody else can have loaded Starlette.
        dependency.__annotations__["request"] = starlette.HTTPConnection
    return dependency


def _path(scope: Scope) -> str:
    """Return the path below where the application is mounted, as routers of ASGI frameworks do."""
    path: str = scope["path"]
    root = scope.get("root_path", "")
    if root and path.startswith(root):
        path = path[len(root) :]
        if path and path[0] != "/":
            return ""  # `/apix` below `/api`: routers do not agree on what that is
    return path or "/"


def _joined(so_far: str, value: bytes) -> str:
    """Join fields of one name, as HTTP reads them; two credentials are none that is well-formed."""
    text = value.decode("latin-1")
    return f"{so_far}, {text}" if so_far else text


def _encoded(fields: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1", "replace")) for name, value in fields]


async def _deny(denial: Denial, scope: Scope, send: Send) -> None:
    prefix = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION})  # a server without it answers 403
            return
        prefix = "websocket.http"
    headers = _encoded(denial.fields)
    await send({"type": f"{prefix}.response.start", "status": denial.status, "headers": headers})
    body = b"" if scope.get("method") == "HEAD" else denial.body
    await send({"type": f"{prefix}.response.body", "body": body})
