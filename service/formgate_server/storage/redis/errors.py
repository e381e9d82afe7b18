"""Why a request to Redis had no answer, and whether it may have been run all the same."""

from __future__ import annotations

from formgate_server.core.errors import CountersUnavailableError, LostAnswerError, UnavailableError


class StoreUnavailable(CountersUnavailableError):  # noqa: N818 - it says what is so; the base says that it is an error
    """Not sent, or refused: nothing happened.

    ``detail`` is for the log and names addresses; what a caller of the service may read is ``message``.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("The store of the counters does not answer.", detail=detail)

    def __str__(self) -> str:
        return self.detail


class LostAnswer(StoreUnavailable, LostAnswerError):  # noqa: N818 - as above
    """It was sent and its answer never came: it may have been run."""


class ScriptFailed(UnavailableError):  # noqa: N818 - as above
    """It was answered by an error in the middle of it: what it did before that is done. A fault of ours.

    The store is there, so nothing goes on as if it were not: whoever asked is told that nothing is decided.
    """

    def __init__(self, detail: str) -> None:
        super().__init__("The store of the counters can not do this.", detail=detail)

    def __str__(self) -> str:
        return self.detail
