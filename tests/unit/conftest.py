"""Unit tests: no network, and hypothesis as long as `make test` has time for it."""

from collections.abc import Iterator

import pytest
from hypothesis import settings
from pytest_socket import disable_socket, enable_socket

from tests.support.soak import SOAK

# In `make test` the examples are the same at every run: a gate gives one answer for one tree, and a failure is there
# again for whoever looks into it. New examples are for `make soak` to find; it prints how to repeat one.
# No deadline: time is bounded by the number of examples, and cores are shared. A test that wants more or fewer takes a
# multiple of the profile's number, so that soak multiplies that too.
settings.register_profile("default", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("soak", max_examples=20 * 100, deadline=None, print_blob=True)
settings.load_profile("soak" if SOAK else "default")


@pytest.fixture(autouse=True)
def no_network() -> Iterator[None]:
    """A unit test that opens a connection fails; asyncio's own socket pair is a Unix socket."""
    disable_socket(allow_unix_socket=True)
    yield
    enable_socket()
