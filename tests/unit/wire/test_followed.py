"""Files that are followed: what is good is used, what is not changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import structlog

from formgate_server.wire.followed import Followed, UnfitFileError


def number(contents: Sequence[bytes]) -> int:
    """Make a number of two files; they may be unfit, or find a fault of ours."""
    if contents == (b"0", b"0"):
        raise ZeroDivisionError
    try:
        return int(b"".join(contents))
    except ValueError:
        raise UnfitFileError("no number") from None


class Two:
    """Two files that are followed."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder / "a", folder / "b"]
        self.write("1", "2")
        self.followed = Followed("numbers", self.paths, number)

    def write(self, *contents: str) -> None:
        """Replace what the files hold."""
        for path, content in zip(self.paths, contents, strict=True):
            path.write_text(content)

    def look(self, times: int = 1) -> list[str]:
        """Look, and return what was logged."""
        with structlog.testing.capture_logs() as logs:
            for _ in range(times):
                self.followed.look()
        return [f"{log['log_level']}: {log['event']}" for log in logs]


@pytest.fixture
def two(tmp_path: Path) -> Two:
    """Two good files."""
    return Two(tmp_path)


USED = "info: files have changed, and are in use"
REFUSED = "error: files have changed and can not be used: what they held before stays"
BACK = "info: files are as they were before"


def test_what_changes_is_used_at_once(two: Two) -> None:
    """And told once; what is as it was is not told."""
    two.write("3", "4")
    assert two.look(3) == [USED]
    assert two.followed.value == 34


def test_a_swap_of_links_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes does it: the files are links, through ..data, into a folder that is another afterwards."""
    for name, content in (("first", "1"), ("second", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(content)
    (tmp_path / "..data").symlink_to("first")
    (tmp_path / "file").symlink_to("..data/file")
    followed = Followed("numbers", [tmp_path / "file"], number)
    before = followed.value
    (tmp_path / "..data_tmp").symlink_to("second")
    (tmp_path / "..data_tmp").rename(tmp_path / "..data")
    followed.look()
    assert (before, followed.value) == (1, 2)


@pytest.mark.parametrize("bad", [("x", "y"), ("0", "0")], ids=["unfit", "a fault of ours"])
def test_what_can_not_be_used_changes_nothing(two: Two, bad: tuple[str, str]) -> None:
    """It is told once, however long it stays; when the files are good again, that is told, too."""
    two.write(*bad)
    assert two.look(5) == [REFUSED]
    assert two.followed.is_refused
    assert two.followed.value == 12
    two.write("1", "2")
    assert two.look(2) == [BACK]
    two.write(*bad)
    assert two.look(5) == [REFUSED]
    two.write("5", "6")
    assert two.look(2) == [USED]
    assert (two.followed.value, two.followed.is_refused) == (56, False)


def test_files_under_replacement_are_no_fault(two: Two) -> None:
    """One after the other is replaced: what is between is neither used nor told."""
    two.write("x", "2")
    assert two.look() == []
    two.write("x", "y")
    assert two.look() == []
    two.write("7", "8")
    assert two.look() == [USED]
    assert two.followed.value == 78


def test_a_file_that_is_gone_changes_nothing(two: Two) -> None:
    """It is told once, by its name."""
    two.paths[0].unlink()
    assert two.look(3) == [REFUSED]
    assert two.followed.value == 12


def test_unfit_from_the_start_is_refused(two: Two) -> None:
    """There is nothing before it that could stay."""
    two.write("x", "y")
    with pytest.raises(UnfitFileError, match="no number"):
        Followed("numbers", two.paths, number)
    two.paths[1].unlink()
    with pytest.raises(UnfitFileError, match=r"/b: No such file"):
        Followed("numbers", two.paths, number)
