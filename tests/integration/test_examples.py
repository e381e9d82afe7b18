from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.process import launch
from tests.support.quick import quick_command
from tests.support.server import clean_environment, eventually
from tests.support.typed import ROOT, Renamed, free_port, type_into_shell, typed, without_varying

PAGE = ROOT / "docs" / "guides" / "three-services.md"


@pytest.fixture(scope="module")
def packages() -> None:
    """What the examples are made of, in its environment; the test is skipped where that can not be made."""
    made = subprocess.run(
        ["make", "--no-print-directory", ".venv-examples/.installed", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    if made.returncode:
        pytest.skip(f"the examples' environment can not be made here: {made.stderr.strip().splitlines()[-1:]}")


@pytest.fixture
def command(tmp_path: Path) -> Iterator[Path]:
    """The folder of a command that need not import everything each time it is typed."""
    with quick_command(tmp_path / "bin") as folder:
        yield folder


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("packages")
def test_the_three_services_are_as_their_guide_says(command: Path, tmp_path: Path) -> None:
    """`make demo` starts them all, what the guide types prints what it shows, and a signal ends them all."""
    formgate, forms, submissions, sites = ports = [free_port() for _ in range(4)]
    data = tmp_path / "demo"
    renamed = Renamed(
        {
            "127.0.0.1:50061": f"127.0.0.1:{formgate}",
            "127.0.0.1:8001": f"127.0.0.1:{forms}",
            "127.0.0.1:8002": f"127.0.0.1:{submissions}",
            "127.0.0.1:8003": f"127.0.0.1:{sites}",
            "formgate-demo": str(data),
            "$PWD/.venv/bin:": f"{command}:",
        }
    )
    started: list[str | Path] = [
        sys.executable,
        ROOT / "examples" / "demo.py",
        "--data",
        str(data),
        "--ports",
        *map(str, ports),
    ]
    stdout, stderr = tmp_path / "stdout", tmp_path / "stderr"
    environment = clean_environment()
    with stdout.open("wb") as out, stderr.open("wb") as err:
        demo = launch(started, stdout=out, stderr=err, environment=environment)
    try:
        ready = eventually(lambda: demo.poll() is not None or stdout.read_text(), 120, "the demo's ready line")
        assert ready is not True, stderr.read_text()
        assert renamed.shown(str(ready)) in PAGE.read_text(encoding="utf-8")
        lines = list(typed(PAGE))
        printed = type_into_shell([renamed.here(each) for each, _ in lines], environment, command)
    finally:
        demo.terminate()
        began = time.monotonic()
        demo.wait(60)
    assert [
        (line, without_varying(renamed.shown(output))) for (line, _), output in zip(lines, printed, strict=True)
    ] == [(line, without_varying(shown)) for line, shown in lines]
    assert time.monotonic() - began < 60
    left = subprocess.run(["pgrep", "-f", str(data)], capture_output=True, text=True, check=False)
    assert left.stdout == "", "something of the demo runs on"
