"""For Flask, Django and every other WSGI application.

::

    app = Flask(__name__)
    app.wsgi_app = FormgateMiddleware(
        app.wsgi_app,
        Client(),
        rules=[
            Open("GET", "/health"),
            Rule("GET", "/forms/{form_id}", permissions=["forms.read"], resources=["forms/{form_id}"]),
        ],
    )

What no rule matches is denied. The verdict is ``environ["formgate.verdict"]``, and ``current_verdict()``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import wraps
from http import HTTPStatus
from itertools import chain
from types import TracebackType
from typing import Any, ParamSpec, Protocol, TypeAlias, TypeVar

from formgate.middleware.answers import Answers, Fields
from formgate.middleware.current import current_verdict
from formgate.middleware.current import verdict as current
from formgate.middleware.guard import Asker, BadValueError, Denial, Guard, NoRuleError, checked
from formgate.middleware.rules import ByRoute, Line, Need, Open, Resources, Rule, Values
from formgate.verdict import Verdict

__all__ = ["Answers", "ByRoute", "FormgateMiddleware", "Open", "Rule", "current_verdict", "requires"]

Environ: TypeAlias = dict[str, Any]
ExcInfo: TypeAlias = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
App: TypeAlias = Callable[[Environ, Any], Iterable[bytes]]

P = ParamSpec("P")
T = TypeVar("T")


class StartResponse(Protocol):
    """As PEP 3333 says."""

    def __call__(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Callable[[bytes], object]:
        """Begin the answer."""
        ...


class Checker(Protocol):
    """What is asked: a ``Client``, or ``FakeFormgate`` in tests."""

    def check(self, *args: Any, **asked: Any) -> Verdict:  # noqa: ANN401 - those of Client.check
        """Return the verdict; whatever is raised denies the request."""
        ...


class FormgateMiddleware:
    """Lets a request through if its rule allows it. It belongs next to the router, inside of what changes paths."""

    def __init__(  # noqa: PLR0913 - its settings
        self,
        app: App,
        client: Checker,
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
        self._key_variable = "HTTP_" + key_header.upper().replace("-", "_") if key_header else ""

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Decide one request."""
        method: str = environ["REQUEST_METHOD"].upper()
        found = self._guard.find(method, _path(environ), _raw_path(environ))
        if isinstance(found, Denial):
            return _deny(found, method, start_response)
        rule = found.rule
        asking = _Asking(self._client, self._guard, self._read(environ, method))
        verdict: Verdict | None = None
        if isinstance(rule, Rule):
            answer = asking(rule, found.values)
            if isinstance(answer, Denial):
                return _deny(answer, method, start_response)
            verdict = answer
        environ["formgate.verdict"] = verdict
        tokens = current.set(verdict), _asking.set(asking)
        try:
            if isinstance(rule, ByRoute):
                return self._hear(environ, start_response, asking)
            return self._app(environ, self._begin(start_response, asking))
        finally:
            current.reset(tokens[0])
            _asking.reset(tokens[1])

    def _begin(self, start_response: StartResponse, asking: _Asking) -> StartResponse:
        """Say where limits stand, with the answer's own fields."""

        def begin(
            status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
        ) -> Callable[[bytes], object]:
            if asking.verdict is not None:
                headers = [*headers, *self._guard.fields(asking.verdict)]
            return start_response(status, headers) if exc_info is None else start_response(status, headers, exc_info)

        return begin

    def _hear(self, environ: Environ, start_response: StartResponse, asking: _Asking) -> Iterable[bytes]:
        """Run a route that has to ask, and hear its answer only if it did, and was allowed."""
        begun: list[tuple[Any, ...]] = []
        written: list[bytes] = []
        onward = self._begin(start_response, asking)
        heard = False
        server_write: Callable[[bytes], object] = written.append

        def begin(
            status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
        ) -> Callable[[bytes], object]:
            if heard:  # the answer goes out already: an error is the server's to raise
                return onward(status, headers, exc_info)
            begun[:] = [(status, headers, exc_info)]
            return write

        def write(data: bytes) -> None:
            server_write(data)

        chunks = self._app(environ, begin)
        try:
            iterator = iter(chunks)
            first = [] if begun else list(_first(iterator))  # a generator has not run yet
            denial = asking.denial
            if denial is None and asking.verdict is None:
                denial = self._guard.unasked()
            if denial is None and begun:
                heard = True
                server_write = onward(*begun[0])
                return _Chunks(chunks, chain(written, first, iterator))
        except BaseException:
            _close(chunks)
            raise
        _close(chunks)
        return _deny(denial or self._guard.bad_value(), asking.asker.method, start_response)

    def _read(self, environ: Environ, method: str) -> Asker:
        return Asker(
            method,
            environ.get("HTTP_AUTHORIZATION", ""),
            environ.get(self._key_variable, "") if self._key_variable else "",
            environ.get("HTTP_X_FORWARDED_FOR", ""),
            environ.get("REMOTE_ADDR", ""),
        )


class _Asking:
    """How a request's verdict is asked for: by the middleware, or by its route."""

    __slots__ = ("_client", "_guard", "asker", "denial", "verdict")

    def __init__(self, client: Checker, guard: Guard, asker: Asker) -> None:
        self._client = client
        self._guard = guard
        self.asker = asker
        self.verdict: Verdict | None = None
        """The last one that allowed."""
        self.denial: Denial | None = None

    def __call__(self, need: Need, values: Values) -> Verdict | Denial:
        """Ask. Whatever goes wrong is a denial."""
        answer = self._ask(need, values)
        if isinstance(answer, Denial):
            self.denial = answer
        else:
            self.verdict = answer
        return answer

    def _ask(self, need: Need, values: Values) -> Verdict | Denial:
        try:
            asked = self._guard.asked(need, values, self.asker)
            if callable(need.resources):
                asked["resources"] = checked(need.resources(values))  # type: ignore[arg-type] # no coroutine is a list
            verdict = self._client.check(**asked)
            return self._guard.denial(verdict) or verdict
        except BadValueError:
            return self._guard.bad_value()
        except NoRuleError:
            return self._guard.no_rule(self.asker.method)
        except Exception as error:  # noqa: BLE001 - never through
            return self._guard.unavailable(error, self.asker)


_asking: ContextVar[_Asking | None] = ContextVar("formgate asking", default=None)


def requires(
    *permissions: str,
    resources: Resources = (),
    **others: Any,  # noqa: ANN401 - those of Rule
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Return a decorator for a view of Flask: it runs only for a key that may do that.

    ::

        @app.get("/forms/<form_id>")
        @requires("forms.read", resources=["forms/{form_id}"])
        def read(form_id): ...

    Placeholders are the view's own arguments. It needs the middleware, with a ``ByRoute`` rule for such routes, which
    lets no answer out that was not asked for.
    """
    need = Need(permissions=permissions, resources=resources, **others)

    def decorate(view: Callable[P, T]) -> Callable[P, T]:
        @wraps(view)
        def asked(*args: P.args, **kwargs: P.kwargs) -> T:
            asking = _asking.get()
            if asking is None:
                raise RuntimeError("FormgateMiddleware is not there to ask")
            answer = asking(need, {name: str(value) for name, value in kwargs.items()})
            if not isinstance(answer, Denial):
                current.set(answer)  # the middleware puts it back
                return view(*args, **kwargs)
            return _Denied(answer)  # type: ignore[return-value] # Flask takes a WSGI application for an answer

        return asked

    return decorate


class _Denied:
    """A denial as a WSGI application."""

    def __init__(self, denial: Denial) -> None:
        self._denial = denial

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return _deny(self._denial, environ["REQUEST_METHOD"].upper(), start_response)


class _Chunks:
    """A body, some of which has been read; closing it closes what it is of."""

    def __init__(self, whole: Iterable[bytes], rest: Iterator[bytes]) -> None:
        self._whole = whole
        self._rest = rest

    def __iter__(self) -> Iterator[bytes]:
        return self._rest

    def close(self) -> None:
        _close(self._whole)


def _first(iterator: Iterator[bytes]) -> Iterator[bytes]:
    for chunk in iterator:
        yield chunk
        return


def _close(chunks: Iterable[bytes]) -> None:
    close = getattr(chunks, "close", None)
    if close is not None:
        close()


def _path(environ: Environ) -> str:
    """Return the path below where the application is mounted: bytes that WSGI writes as Latin-1."""
    written: str = environ.get("PATH_INFO", "")
    if not written:
        return "/"
    try:
        return written.encode("latin-1").decode()
    except UnicodeError:
        return ""  # frameworks do not agree on how to read that


def _raw_path(environ: Environ) -> bytes:
    """Return the path as it was on the wire, where the server tells: gunicorn and Werkzeug, or uWSGI and others."""
    raw: str = environ.get("RAW_URI") or environ.get("REQUEST_URI") or ""
    return raw.partition("?")[0].encode("latin-1", "replace")


def _deny(denial: Denial, method: str, start_response: StartResponse) -> Iterable[bytes]:
    start_response(f"{denial.status} {_phrase(denial.status)}", _native(denial.fields))
    return [] if method == "HEAD" else [denial.body]


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Denied"


def _native(fields: Fields) -> list[tuple[str, str]]:
    """Return fields as WSGI wants them: text that is Latin-1."""
    return [(name, value.encode("latin-1", "replace").decode("latin-1")) for name, value in fields]
