"""Sends usage records, by the thousand, and tells what became of them."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from google.protobuf.json_format import Parse, ParseError
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from formgate.v1 import authorization_pb2 as pb
from formgate_server.cli import output, people
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.remote import Server
from formgate_server.cli.text import safe

MOST_RECORDS = 1_000  # a call's, says the contract
MOST_BYTES = 3 * 2**20  # a call's; gRPC takes 4 MiB
_MOST_SHOWN = 20

_RECORDED = frozenset({pb.OUTCOME_ACCEPTED, pb.OUTCOME_DUPLICATE})


class Line(NamedTuple):
    """A record and where it stands; ``end`` is how many bytes have been read with it."""

    number: int
    record: pb.UsageRecord
    end: int


class Tally:
    """What became of the records so far: how many by outcome, and the first that were not recorded."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.failed: list[tuple[int, pb.UsageResult]] = []
        self._failures = 0

    def add(self, line: Line, result: pb.UsageResult) -> None:
        """Count one."""
        self.outcomes[people.outcome(result.outcome)] += 1
        if result.outcome not in _RECORDED:
            self._failures += 1
            if len(self.failed) < _MOST_SHOWN:
                self.failed.append((line.number, result))

    @property
    def exit_code(self) -> ExitCode:
        """DONE where all are recorded, now or before."""
        return ExitCode.REFUSED if self._failures else ExitCode.DONE

    def show(self) -> None:
        """Print the summary."""
        output.show_people(
            people.card({name: f"{count:,}" for name, count in self.outcomes.items()} or {"records": "0"})
        )
        if self.failed:
            output.show_people("", _failures(self.failed))
        if self._failures > len(self.failed):
            output.show_people(f"… and {self._failures - len(self.failed):,} more; --json tells all")


def _failures(failed: Iterable[tuple[int, pb.UsageResult]]) -> Table:
    table = people.table("LINE", "RECORD ID", "OUTCOME", "WHY")
    for number, result in failed:
        table.add_row(str(number), safe(result.record_id), people.outcome(result.outcome), safe(result.message))
    return table


def send_one(server: Server, record: pb.UsageRecord, *, json: bool) -> ExitCode:
    """Send a record and print its result."""
    try:
        response = server.call(server.authorization.RecordUsage, pb.RecordUsageRequest(records=[record]))
    except CommandError as error:
        if error.code is ExitCode.UNDECIDED:
            error.details = (
                *error.details,
                f"it may be recorded or not: --record-id {record.record_id} counts it once",
            )
        raise
    tally = Tally()
    for result in response.results:
        tally.add(Line(1, record, 0), result)
        output.show(result, json, people.usage_result)
    return tally.exit_code


def send_file(server: Server, file: Path, *, json: bool) -> ExitCode:
    """Send the records of a file, ``-`` being stdin, and print the summary; or with ``json`` each result."""
    tally = Tally()
    # Results on the same screen would run into the bar.
    with _opened(file) as (stream, size), _progress(hidden=json and sys.stdout.isatty()) as progress:
        task = progress.add_task("recording", total=size)
        results = _results(server, read_lines(stream), tally, lambda end: progress.update(task, completed=end))
        if json:
            output.print_array(results)
        else:
            for _ in results:
                pass
    if not json:
        tally.show()
    return tally.exit_code


def _results(
    server: Server, lines: Iterable[Line], tally: Tally, sent_up_to: Callable[[int], None]
) -> Iterator[pb.UsageResult]:
    """Send batch after batch. Raises CommandError saying how far it came, and that all can be sent again."""
    try:
        for batch in batches(lines):
            request = pb.RecordUsageRequest(records=[line.record for line in batch])
            response = server.call(server.authorization.RecordUsage, request)
            for line, result in zip(batch, response.results, strict=True):
                tally.add(line, result)
                yield result
            sent_up_to(batch[-1].end)
    except CommandError as error:
        if answered := tally.outcomes.total():
            told = (
                f"{answered:,} records before it are answered; sent again with the others, they count once all the same"
            )
            error.details = (*error.details, told)
        raise


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Put together what fits one call."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        bytes_more = line.record.ByteSize()
        if batch and (len(batch) == MOST_RECORDS or size + bytes_more > MOST_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += bytes_more
    if batch:
        yield batch


def read_lines(stream: Iterable[bytes]) -> Iterator[Line]:
    """Read a record a line; empty lines are passed over. Raises CommandError naming the line that is none."""
    end = 0
    for number, text in enumerate(stream, start=1):
        end += len(text)
        if not text.strip():
            continue
        try:
            yield Line(number, Parse(text, pb.UsageRecord()), end)
        except (ParseError, UnicodeDecodeError) as error:
            why = str(error).partition("\n")[0]
            raise CommandError(f"line {number} is no usage record: {why}", ExitCode.USAGE) from None


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[BinaryIO, int | None]]:
    """Open a file; also gives its size in bytes, None where that is not known."""
    if str(file) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        stream = file.open("rb")
    except OSError as error:
        raise CommandError(f"{file} can not be read: {error.strerror}", ExitCode.USAGE) from None
    with stream:
        yield stream, file.stat().st_size if file.is_file() else None


def _progress(*, hidden: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=output.stderr(),
        transient=True,
        disable=hidden or not sys.stderr.isatty(),
        redirect_stdout=False,  # what is asked for goes where it was sent
        redirect_stderr=False,
    )
