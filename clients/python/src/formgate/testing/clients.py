"""The fake as a client of either kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self

from formgate.aio import AsyncClient
from formgate.asking import Check
from formgate.client import Client
from formgate.errors import ClosedError, FormgateError
from formgate.fallback import denied
from formgate.verdict import Verdict

Decide = Callable[[Check], Verdict]


class FakeClient(Client):
    """A ``Client`` that no network is behind."""

    def __init__(self, decide: Decide) -> None:  # what the real one makes, connections, is not made
        self._decided_by = decide
        self._is_closed = False
        self.recorded: list[dict[str, Any]] = []
        """What ``record`` was given, in order."""

    @property
    def counters(self) -> dict[str, int]:
        """Nothing is counted."""
        return {}

    def after_fork(self) -> None:
        """Nothing is connected."""

    def check(self, key: str | None = None, **asked: Any) -> Verdict:  # noqa: ANN401 - those of Client.check
        """As ``Client.check``."""
        asked.pop("timeout", None)
        return self._decided(Check(key, **asked))

    def check_all(
        self,
        checks: Iterable[Check],
        *,
        timeout: float | None = None,  # noqa: ARG002 - it answers at once
    ) -> list[Verdict]:
        """As ``Client.check_all``."""
        return [self._one_of_many(check) for check in checks]

    def _one_of_many(self, check: Check) -> Verdict:
        try:
            return self._decided(check)
        except ClosedError:
            raise
        except FormgateError as error:
            return denied(error)

    def _decided(self, check: Check) -> Verdict:
        if self._is_closed:
            raise ClosedError("the client is closed")
        return self._decided_by(check)

    def record(self, key_id: str, units: int = 1, **fields: Any) -> str:  # noqa: ANN401 - those of Client.record
        """As ``Client.record``: it is in ``recorded``, and charges nothing."""
        if self._is_closed:
            raise ClosedError("the client is closed")
        self.recorded.append({"key_id": key_id, "units": units, **fields})
        return str(fields.get("record_id") or f"fake-{len(self.recorded)}")

    def close(self) -> None:
        """As ``Client.close``: it decides nothing any more."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class FakeAsyncClient(AsyncClient):
    """An ``AsyncClient`` that no network is behind."""

    def __init__(self, decide: Decide) -> None:  # what the real one makes, connections, is not made
        self._fake = FakeClient(decide)

    @property
    def counters(self) -> dict[str, int]:
        """Nothing is counted."""
        return {}

    def after_fork(self) -> None:
        """Nothing is connected."""

    async def check(self, key: str | None = None, **asked: Any) -> Verdict:  # noqa: ANN401 - those of Client.check
        """As ``AsyncClient.check``."""
        return self._fake.check(key, **asked)

    async def check_all(
        self,
        checks: Iterable[Check],
        *,
        timeout: float | None = None,  # noqa: ARG002, ASYNC109 - it answers at once
    ) -> list[Verdict]:
        """As ``AsyncClient.check_all``."""
        return self._fake.check_all(checks)

    def record(self, key_id: str, units: int = 1, **fields: Any) -> str:  # noqa: ANN401 - those of Client.record
        """As ``AsyncClient.record``: it is in ``recorded``, and charges nothing."""
        return self._fake.record(key_id, units, **fields)

    @property
    def recorded(self) -> list[dict[str, Any]]:
        """What ``record`` was given, in order."""
        return self._fake.recorded

    async def close(self) -> None:
        """As ``AsyncClient.close``: it decides nothing any more."""
        self._fake.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
