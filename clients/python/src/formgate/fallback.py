"""What is decided when the service does not answer: by the fail mode, within a budget, and never in silence."""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, Literal, TypeAlias, get_args

from formgate.asking import Check, several
from formgate.clock import monotonic
from formgate.counters import Counters
from formgate.errors import BrokenAnswerError, FormgateError
from formgate.rules.grants import Level
from formgate.rules.reason import Reason
from formgate.verdict import HttpDenial, Source, Verdict

Mode: TypeAlias = Literal["closed", "open", "last known"]
"""``closed``: denied. ``open``: allowed. ``last known``: as the service last decided the same, if it lately did."""
Fail: TypeAlias = Mode | Mapping[Level | str, Mode]
"""One for all, or one a level; a level that is not named is closed."""

_log = logging.getLogger("formgate")
_MESSAGE: Final = "The request could not be authorized just now; try again."
_UNDECIDED: Final = HttpDenial(
    503,
    (("content-type", "application/json"), ("cache-control", "no-store"), ("retry-after", "1")),
    b'{"error": {"reason": "UNAVAILABLE", "message": "' + _MESSAGE.encode() + b'"}}',
)
_METHODS: Final = {
    "GET": Level.READ,
    "HEAD": Level.READ,
    "OPTIONS": Level.READ,
    "POST": Level.WRITE,
    "PUT": Level.WRITE,
    "PATCH": Level.WRITE,
}
# The service is there and says why it looks no more keys up: to let them in now is what a flood would be for.
_NO_SILENCE: Final = frozenset({"TOO_MANY_UNKNOWN_KEYS"})
_MOST_SHAPES: Final = 64
_LOG_PAUSE_SECONDS: Final = 10.0
"""A service that answers every other check is not told of each time."""
_DEAD: Final = frozenset(
    {
        Reason.KEY_NOT_FOUND,
        Reason.KEY_REVOKED,
        Reason.KEY_DISABLED,
        Reason.KEY_EXPIRED,
        Reason.ACCOUNT_SUSPENDED,
    }
)


@dataclass(frozen=True, slots=True)
class Emergency:
    """How much is let in by ``open`` and ``last known``, in this process; what is beyond is denied.

    No limit of a key counts meanwhile, so this is what stands between an outage and any amount of traffic.
    """

    checks_per_key: float = 10.0
    """A second, for each credential; so many at once, too."""
    checks: float = 1_000.0
    """A second, in all."""
    seconds: float = 600.0
    """From the first check that was not answered: then everything is closed until the service answers."""
    remembered: int = 10_000
    """Credentials whose verdicts ``last known`` keeps; of each the last 64 different requests."""
    remembered_seconds: float = 600.0
    """For so long after the service has given it."""


def level_of(check: Check) -> Level:
    """Return how much a check's request would do: as it says, else by its HTTP method, else the most."""
    if check.level is None:
        return _METHODS.get(check.http_method, Level.MANAGE)
    return level_named(check.level)


def level_named(given: Level | str) -> Level:
    """Return the level of that name or number. Raises ValueError."""
    level = Level.__members__.get(given.upper()) if isinstance(given, str) else Level(given)
    if not level:
        raise ValueError(f"{given!r} is no level: read, write or manage")
    return level


def modes_of(fail: Fail) -> dict[Level, Mode]:
    """Return each level's mode. Raises ValueError."""
    by_level = dict.fromkeys(_LEVELS, fail) if isinstance(fail, str) else {level_named(k): v for k, v in fail.items()}
    for mode in by_level.values():
        if mode not in get_args(Mode):
            raise ValueError(f"{mode!r} is no fail mode: closed, open or last known")
    return {level: by_level.get(level, "closed") for level in _LEVELS}


_LEVELS: Final = (Level.READ, Level.WRITE, Level.MANAGE)


def denied(error: FormgateError, message: str = _MESSAGE) -> Verdict:
    """Return the verdict on a check that nobody decided."""
    return Verdict(
        allowed=False,
        reason=None,
        message=message,
        http_status=_UNDECIDED.status,
        http_denial=_UNDECIDED,
        degraded=True,
        source=Source.FALLBACK,
        error=_bare(error),
    )


def _bare(error: FormgateError) -> FormgateError:
    """Return an error without the frames that it came through: a verdict may be kept, and frames hold keys."""
    error.__context__ = error.__cause__ = None
    return error.with_traceback(None)


class Fallback:
    """Decides by the fail mode. For many threads."""

    def __init__(
        self,
        fail: Fail,
        emergency: Emergency,
        counters: Counters,
        on_fallback: Callable[[Check, Verdict], None] | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """``clock`` in seconds. ``on_fallback`` is told of each verdict that the service did not give."""
        self._modes = modes_of(fail)
        self._remembers = "last known" in self._modes.values()
        self._emergency = emergency
        self._counters = counters
        self._on_fallback = on_fallback
        self._clock = clock
        self._budget = _Budget(emergency)
        self._known = _Known(emergency)
        self._away_since: float | None = None
        self._logged: float | None = None
        """When it was last logged that the service is away."""
        self._is_told = False
        """Whether that is so of the silence of now."""
        self._lock = threading.Lock()

    def answered(self, check: Check, verdict: Verdict) -> None:
        """Take note of a verdict of the service."""
        if self._away_since is not None:
            self._is_back()
        if self._remembers:
            with self._lock:
                self._known.remember(check, verdict, self._clock())

    def leased(self, check: Check, verdict: Verdict, began: float) -> None:
        """Take note of a verdict by a lease that the service was asked for at ``began``; it has answered since."""
        away_since = self._away_since
        if away_since is not None and began > away_since:
            self._is_back()
        if self._remembers:
            with self._lock:
                self._known.remember(check, verdict, self._clock(), began)

    def _is_back(self) -> None:
        with self._lock:
            away_since, self._away_since = self._away_since, None
            is_told, self._is_told = self._is_told, False
        if is_told and away_since is not None:
            _log.warning("the service answers again, after %.1f s", self._clock() - away_since)

    def decide(self, check: Check, error: FormgateError) -> Verdict:
        """Return the verdict on a check that the service did not decide, because of ``error``; counted and told."""
        mode = self._modes[level_of(check)]
        with self._lock:
            now = self._clock()
            if self._away_since is None:
                self._away_since = now
            tells = self._is_to_be_told(now)
            verdict = self._decide(check, error, mode, now, now - self._away_since)
        if tells:
            kind = f"{type(error).__name__} {error.reason}".rstrip()
            _log.warning("the service decides no checks (%s); until it does the fail mode does: %s", kind, mode)
        self._count(verdict, error)
        if self._on_fallback is not None:
            try:
                self._on_fallback(check, verdict)
            except Exception:  # noqa: BLE001 - of somebody else; the verdict stands
                _log.exception("on_fallback failed")
        return verdict

    def _is_to_be_told(self, now: float) -> bool:
        """Tell whether it is to be logged that the service is away, and take note of that."""
        if self._is_told or (self._logged is not None and now - self._logged < _LOG_PAUSE_SECONDS):
            return False
        self._is_told, self._logged = True, now
        return True

    def _decide(self, check: Check, error: FormgateError, mode: Mode, now: float, away: float) -> Verdict:
        if mode == "closed" or isinstance(error, BrokenAnswerError) or error.reason in _NO_SILENCE:
            return denied(error)
        if not _shows_a_key(check):
            return denied(error)
        verdict = Verdict(True, None, "", 200, degraded=True, source=Source.FALLBACK, error=_bare(error))  # noqa: FBT003
        if mode == "last known":
            known = self._known.recall(check, now)
            if known is None:
                return denied(error)
            verdict = replace(known, degraded=True, source=Source.FALLBACK, limits=(), error=_bare(error))
        if verdict.allowed and (away >= self._emergency.seconds or not self._budget.take(_credential(check), now)):
            self._counters.add("emergency_exceeded")
            return denied(error)
        return verdict

    def _count(self, verdict: Verdict, error: FormgateError) -> None:
        self._counters.add("unanswered")
        if isinstance(error, BrokenAnswerError):
            self._counters.add("broken")
        if not verdict.allowed:
            self._counters.add("fallback_closed")
        else:
            self._counters.add("fallback_open" if verdict.reason is None else "fallback_last_known")

    def after_fork(self) -> None:
        """Go on in a child, where nobody holds the lock."""
        self._lock = threading.Lock()


def _shows_a_key(check: Check) -> bool:
    """Tell whether there is a credential at all: what has none is not let in by any mode."""
    if check.authorization is None:
        return bool(check.key)
    scheme, space, token = check.authorization.partition(" ")
    return scheme.lower() == "bearer" and bool(space) and bool(token.strip()) and " " not in token.strip()


_SALT: Final = secrets.token_bytes(16)


def _credential(check: Check) -> bytes:
    """Return a digest by which a key is known again; the key itself is not kept."""
    key = check.key if check.authorization is None else check.authorization.partition(" ")[2].strip()
    return hashlib.blake2b((key or "").encode(errors="replace"), digest_size=16, key=_SALT).digest()


class _Budget:
    """Token buckets: one for all, and one for each credential that lately asked. Full at first."""

    def __init__(self, emergency: Emergency) -> None:
        self._emergency = emergency
        self._all = _Bucket(emergency.checks)
        self._by_key: OrderedDict[bytes, _Bucket] = OrderedDict()

    def take(self, credential: bytes, now: float) -> bool:
        """Take one of both, or none."""
        bucket = self._by_key.get(credential)
        if bucket is None:
            bucket = self._by_key[credential] = _Bucket(self._emergency.checks_per_key)
            if len(self._by_key) > max(1, self._emergency.remembered):
                self._by_key.popitem(last=False)
        self._by_key.move_to_end(credential)
        if bucket.level(now) < 1 or self._all.level(now) < 1:
            return False
        bucket.tokens -= 1
        self._all.tokens -= 1
        return True


class _Bucket:
    __slots__ = ("_at", "_most", "_rate", "tokens")

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._most = max(rate, 1.0) if rate > 0 else 0.0
        self.tokens = self._most
        self._at: float | None = None

    def level(self, now: float) -> float:
        """Return how many tokens there are by now."""
        if self._at is not None:
            self.tokens = min(self._most, self.tokens + (now - self._at) * self._rate)
        self._at = now
        return self.tokens


class _Known:
    """The service's last verdicts, bounded in number and age."""

    def __init__(self, emergency: Emergency) -> None:
        self._most = emergency.remembered
        self._seconds = emergency.remembered_seconds
        self._keys: OrderedDict[bytes, _KnownKey] = OrderedDict()

    def remember(self, check: Check, verdict: Verdict, now: float, began: float | None = None) -> None:
        """Keep a verdict of the service. ``began``: it is by a lease of then; what was told since then counts more."""
        if self._most < 1:
            return
        credential = _credential(check)
        known = self._keys.get(credential)
        if known is not None and began is not None and known.told(_shape(check)) >= began:
            return
        if known is None:
            if not verdict.allowed and verdict.key is None:
                return  # of no key that there is: it is denied anyhow, and any number of them may come
            known = self._keys[credential] = _KnownKey()
            if len(self._keys) > self._most:
                self._keys.popitem(last=False)
        self._keys.move_to_end(credential)
        if verdict.reason in _DEAD:
            known.verdicts.clear()
            known.dead = verdict, now
            return
        known.dead = None
        shape = _shape(check)
        known.verdicts[shape] = verdict, now
        known.verdicts.move_to_end(shape)
        if len(known.verdicts) > _MOST_SHAPES:
            known.verdicts.popitem(last=False)

    def recall(self, check: Check, now: float) -> Verdict | None:
        """Return the last verdict on the same request of the same key, if it is young enough and still may hold."""
        known = self._keys.get(_credential(check))
        if known is None:
            return None
        verdict, at = known.dead or known.verdicts.get(_shape(check)) or (None, 0.0)
        if verdict is None or now - at >= self._seconds:
            return None
        key = verdict.key
        if key is not None and key.expire_time is not None and key.expire_time <= datetime.now(UTC):
            return None
        return verdict


class _KnownKey:
    """What was said of one credential: by request, or of the key as such."""

    __slots__ = ("dead", "verdicts")

    def __init__(self) -> None:
        self.dead: tuple[Verdict, float] | None = None
        self.verdicts: OrderedDict[tuple[object, ...], tuple[Verdict, float]] = OrderedDict()

    def told(self, shape: tuple[object, ...]) -> float:
        """Return when something was last said that is about such a request."""
        _, at = self.dead or self.verdicts.get(shape) or (None, float("-inf"))
        return at


def _shape(check: Check) -> tuple[object, ...]:
    """Return all of a check that decides, but for its credential and cost."""
    return (
        several(check.permissions),
        several(check.resources),
        check.api_group,
        check.environment,
        check.http_method,
        check.source_ip,
        check.policy,
    )
