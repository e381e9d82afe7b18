"""Whatever is sent, the answer is one of the contract's, it comes in time, and the server lives on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from formgate.v1 import resources_pb2
from formgate.v1.accounts_pb2 import ListAccountsRequest
from formgate.v1.keys_pb2 import CreateKeyRequest
from tests.support.client import Client, Refusal, check_details, methods, new_account, new_token, path
from tests.support.soak import SOAK

pytest_plugins = ("tests.support.rpc",)

EXAMPLES = 2_000 if SOAK else 25
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not SOAK,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# What the contract knows. UNKNOWN and INTERNAL are faults of ours, DEADLINE_EXCEEDED is a hang, UNAVAILABLE a crash.
CODES = {
    *(StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.FAILED_PRECONDITION, StatusCode.NOT_FOUND),
    *(StatusCode.ALREADY_EXISTS, StatusCode.ABORTED, StatusCode.UNIMPLEMENTED, StatusCode.PERMISSION_DENIED),
}

I32 = [0, 1, -1, 2, 3, 99, 100, 200, 599, 1_000, 2**31 - 1, -(2**31)]
I64 = [*I32, 60, 86_400, 999_999, 1_000_000, 999_999_999, 10**9, 10**15, 253_402_300_799, 315_576_000_000]
I64 += [-62_135_596_800, 2**53, 2**63 - 1, -(2**63)]
TEXTS = [
    *(
        "",
        " ",
        ".",
        "..",
        "*",
        "a",
        "r1",
        "a b",
        "a{b}",
        "a/b",
        "a/../b",
        "a//b",
        "a/*",
        "x" * 64,
        "x" * 65,
        "x" * 5_000,
    ),
    *("\0", "a\nb", "\x1b[2J", "\u202e", "é", "٣", "\U0001f600", "\u2028", "\ufeff", "Bearer ", "Bearer x", "v1"),
    *("default", "second", "standard", "UTC", "Europe/Vienna", "GET", "BREW", "forms.read", "forms.*", "organization"),
    *("10.0.0.1", "10.0.0.0/8", "10.*.*.*", "::1", "::ffff:1.2.3.4", "fe80::1%lo", "0.0.0.0/0", "{account_id}", "%s%n"),
    *("display_name", "grants", "api_groups", "ip_rules", "limits", "expire_time", "metadata", "plan", "state"),
    *("time_zone", "key.grants", "'; DROP TABLE keys; --", "W10=", "bnVsbA==", "fg_live_" + "0" * 49),
]

known: list[str] = []  # ids and secrets that there are


def _scalar(field: FieldDescriptor) -> SearchStrategy[Any]:
    kinds: dict[int, Callable[[], SearchStrategy[Any]]] = {
        FieldDescriptor.TYPE_STRING: lambda: st.sampled_from([*known * 2, *TEXTS]) | st.text(max_size=80),
        FieldDescriptor.TYPE_BYTES: lambda: st.binary(max_size=80),
        FieldDescriptor.TYPE_BOOL: st.booleans,
        FieldDescriptor.TYPE_INT32: lambda: st.sampled_from(I32) | st.integers(-(2**31), 2**31 - 1),
        FieldDescriptor.TYPE_INT64: lambda: st.sampled_from(I64) | st.integers(-(2**63), 2**63 - 1),
        FieldDescriptor.TYPE_ENUM: lambda: st.integers(0, 4) | st.sampled_from(I32),
    }
    return kinds[field.type]()


@st.composite
def _message(draw: DrawFn, kind: Descriptor) -> Message:
    message = GetMessageClass(kind)()
    for field in kind.fields:
        if not draw(st.integers(0, 3)):  # three of four are set: what is required is there often enough
            continue
        _fill(draw, message, field)
    return message


def _fill(draw: DrawFn, message: Any, field: FieldDescriptor) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        names, values = field.message_type.fields
        entries = draw(st.dictionaries(_scalar(names), _scalar(values), max_size=3))
        getattr(message, field.name).update(entries)
    elif field.is_repeated:
        each = _scalar(field) if field.message_type is None else _message(field.message_type)
        getattr(message, field.name).extend(draw(st.lists(each, max_size=3)))
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(draw(_message(field.message_type)))
    else:
        setattr(message, field.name, draw(_scalar(field)))


@st.composite
def _mutated(draw: DrawFn, kind: Descriptor) -> bytes:
    """A message's bytes, some of them overwritten, left out, doubled or put in."""
    payload = bytearray(draw(_message(kind)).SerializeToString(deterministic=True))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(payload)))
        length = draw(st.integers(0, 4))
        payload[at : at + length] = draw(st.binary(max_size=6) | st.just(bytes(payload[at : at + 20]) * 2))
    return bytes(payload)


@pytest.fixture(scope="module", autouse=True)
def things(manager: Client) -> None:
    """Accounts, keys and tokens that requests may hit on."""
    account = new_account(manager)
    made = manager(CreateKeyRequest(account_id=account, request_id="r1"))
    token_id, _ = new_token(manager, resources_pb2.SERVICE_ROLE_CHECKER, account_id=account)
    known[:] = [account, made.key.key_id, made.secret, f"Bearer {made.secret}", token_id]


def _send(manager: Client, method: MethodDescriptor, payload: bytes) -> None:
    outcome = manager.raw(path(method), payload)
    if isinstance(outcome, Refusal):
        assert outcome.code in CODES, outcome
        check_details(outcome)
        assert outcome.message.isprintable(), outcome
        assert len(outcome.message) < 1_000, outcome
    else:
        GetMessageClass(method.output_type).FromString(outcome)


METHODS: Sequence[MethodDescriptor] = list(methods())


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_any_request(manager: Client, method: MethodDescriptor) -> None:
    """Every request that can be written down ends as the contract says, with its details."""

    @SETTINGS
    @given(_message(method.input_type))
    def send(request: Message) -> None:
        _send(manager, method, request.SerializeToString())

    send()
    assert manager(ListAccountsRequest(page_size=1)).accounts


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_any_bytes(manager: Client, method: MethodDescriptor) -> None:
    """So does whatever is no such request, or hardly."""

    @SETTINGS
    @given(_mutated(method.input_type))
    def send(payload: bytes) -> None:
        _send(manager, method, payload)

    send()
    assert manager(ListAccountsRequest(page_size=1)).accounts


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_the_requests_are_worth_sending(method: MethodDescriptor) -> None:
    """The strategy reaches every field of every request, or the fuzz would prove nothing."""
    seen: set[str] = set()

    @settings(SETTINGS, max_examples=100)
    @given(_message(method.input_type))
    def look(request: Message) -> None:
        seen.update(field.name for field, _ in request.ListFields())

    look()
    assert seen == {field.name for field in method.input_type.fields}
