"""Spin, the model checker: found or fetched, and run over one scenario of a model within bounds.

Spin writes a C program that explores every state of the model; so a C compiler is needed, too.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from scripts.debian import run, unpack

PACKAGE = "spin"
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "spin"

_HELP = f"""the model checker spin is missing and could not be fetched: {{}}
Put spin 6.5 on PATH. On Debian and Ubuntu: apt-get install {PACKAGE} gcc"""
_NO_COMPILER = "there is no C compiler (gcc), which spin needs. On Debian and Ubuntu: apt-get install gcc libc6-dev"

_COMPILE_SECONDS = 120
_DEPTH = 200_000  # steps on the longest path; where it is not enough, the verifier says so, and that is no "holds"
_COMPILED = ("-DSAFETY", "-DCOLLAPSE", "-DNOFAIR")  # assertions only; states kept whole, packed; no fairness

_STATES = re.compile(r"([\d.e+]+) states, stored")
_MEGABYTES = re.compile(r"([\d.]+)\s+total actual memory usage")
_ERRORS = re.compile(r"errors: (\d+)")
_STALE = re.compile(r"STALE .*")


class SpinError(Exception):
    """Why a model can not be run, and what to do about it."""


class Bounds(NamedTuple):
    """How much a search may take. ``quick``: less than it takes to have it optimised by the compiler."""

    seconds: float
    megabytes: int
    quick: bool = False


class Found(NamedTuple):
    """What came of a scenario. ``failed`` None: it was not explored to its end, for the reason in ``told``."""

    failed: bool | None
    told: str
    states: int
    seconds: float
    megabytes: float


def find() -> Path:
    """Return spin: on PATH, else unpacked beside us from Debian's package, which needs no root. Raises SpinError."""
    if shutil.which("gcc") is None:
        raise SpinError(_NO_COMPILER)  # spin calls it by this name
    if on_path := shutil.which("spin"):
        return Path(on_path)
    unpacked = CACHE / "usr/bin/spin"
    try:
        if not unpacked.exists():
            unpack(PACKAGE, CACHE)
        run(str(unpacked), "-V")
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise SpinError(_HELP.format(said.strip())) from None
    return unpacked


def explore(
    spin: Path, model: Path, defines: Sequence[str], bounds: Bounds, *, shortest: bool = False
) -> tuple[Found, str]:
    """Explore every state of a scenario; returns what came of it, and the trail of the counterexample, if there is one.

    ``shortest`` looks breadth-first, so that there is no shorter trail. Raises SpinError where it does not compile.
    """
    with tempfile.TemporaryDirectory(prefix="formgate-model-") as name:
        folder = Path(name)
        words = [f"-D{define}" for define in defines]
        copy = folder / model.name
        shutil.copyfile(model, copy)
        search = ["-DBFS"] if shortest else []
        try:
            run(str(spin), "-a", *words, copy.name, folder=folder, seconds=_COMPILE_SECONDS)
            compiler = [
                "gcc",
                "-O0" if bounds.quick else "-O2",
                *_COMPILED,
                *search,
                f"-DMEMLIM={bounds.megabytes}",
                "-o",
                "pan",
                "pan.c",
            ]
            run(*compiler, folder=folder, seconds=_COMPILE_SECONDS)
        except subprocess.CalledProcessError as error:
            raise SpinError(f"{' '.join(words)} makes no model:\n{error.stdout}{error.stderr}") from None
        began = time.monotonic()
        said, ended = _run_verifier(folder, bounds.seconds)
        found = _read(said, time.monotonic() - began, ended)
        if not found.failed:
            return found, ""
        trail = run(str(spin), "-t", "-p", "-g", *words, copy.name, folder=folder, seconds=_COMPILE_SECONDS)
        stale = _STALE.search(trail)  # what the model itself says of the verdict that it objects to
        return found._replace(told=stale[0] if stale else found.told), trail


def _run_verifier(folder: Path, seconds: float) -> tuple[str, bool]:
    """Return what the verifier said, and whether it ended by itself."""
    verifier = [str(folder / "pan"), f"-m{_DEPTH}"]
    try:
        run = subprocess.run(verifier, cwd=folder, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "", False
    return run.stdout + run.stderr, True


def _read(said: str, seconds: float, ended: bool) -> Found:  # noqa: FBT001 - what was read of it
    """Read the verifier's report: only what was searched to its end, without an error, holds."""
    states, memory, errors = _STATES.search(said), _MEGABYTES.search(said), _ERRORS.search(said)
    counted = (int(float(states[1])) if states else 0, seconds, float(memory[1]) if memory else 0.0)
    if not ended:
        return Found(None, "not in time", *counted)
    if errors is not None and errors[1] != "0":
        by_assertion = "assertion violated" in said  # and by nothing else: a variant must fail for what is wrong in it
        return Found(True if by_assertion else None, "" if by_assertion else "another error", *counted)
    for sign in ("reached -DMEMLIM", "max search depth too small", "Search not completed"):
        if sign in said:
            return Found(None, sign, *counted)
    whole = errors is not None and states is not None
    return Found(False if whole else None, "" if whole else "no report", *counted)
