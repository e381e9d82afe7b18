"""A server's error says what to do, and ends the command with the right code."""

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from formgate_server.cli.credentials import Token
from formgate_server.cli.errors import CommandError, ExitCode
from formgate_server.cli.refusal import explain, spelled
from formgate_server.cli.remote import Server

Code = grpc.StatusCode
SPELLINGS = {"grants": "--grant", "key_id": "KEY_ID", "key": "KEY", "display_name": "--name"}
SERVER = Server("127.0.0.1:1", Token("fgt_secret", "FORMGATE_TOKEN"), 2.5, SPELLINGS)


class Failed(grpc.RpcError):
    """A call that has failed, as grpc raises it."""

    def __init__(self, code: grpc.StatusCode, message: str = "", metadata: Any = ()) -> None:
        super().__init__()
        self.status = code, message, metadata

    def code(self) -> grpc.StatusCode:
        """As of a call."""
        return self.status[0]

    def details(self) -> str:
        """As of a call."""
        return self.status[1]

    def trailing_metadata(self) -> Any:
        """As of a call."""
        return self.status[2]


def failed(code: grpc.StatusCode, message: str, *details: Any) -> Failed:
    """A failure that a Formgate server has worded."""
    status = Status(message=message)
    for detail in details:
        packed = Packed()
        packed.Pack(detail)
        status.details.append(packed)
    return Failed(code, message, (("other", "x"), ("grpc-status-details-bin", status.SerializeToString())))


def told(error: CommandError) -> str:
    """All that is said of an error."""
    return "\n".join([error.message, *error.details, error.hint])


@pytest.mark.parametrize(
    ("code", "reason", "exit_code", "says"),
    [
        (Code.NOT_FOUND, "KEY_NOT_FOUND", ExitCode.REFUSED, "it is not so (KEY_NOT_FOUND)"),
        (Code.FAILED_PRECONDITION, "KEY_REVOKED", ExitCode.REFUSED, "it is not so (KEY_REVOKED)"),
        (Code.ALREADY_EXISTS, "ALREADY_EXISTS", ExitCode.REFUSED, "ALREADY_EXISTS"),
        (Code.ABORTED, "ETAG_MISMATCH", ExitCode.REFUSED, "ETAG_MISMATCH"),
        (Code.RESOURCE_EXHAUSTED, "TOO_BIG", ExitCode.REFUSED, "TOO_BIG"),
        (Code.UNAUTHENTICATED, "INVALID_SERVICE_TOKEN", ExitCode.REFUSED, "the token of FORMGATE_TOKEN is not one"),
        (Code.PERMISSION_DENIED, "ROLE_NOT_ALLOWED", ExitCode.REFUSED, "the token of FORMGATE_TOKEN may not do this"),
        (Code.UNIMPLEMENTED, "UNIMPLEMENTED", ExitCode.REFUSED, "UNIMPLEMENTED"),
        (Code.UNAVAILABLE, "STORE_UNAVAILABLE", ExitCode.UNDECIDED, "the server is up"),
        (Code.INTERNAL, "INTERNAL", ExitCode.UNDECIDED, "INTERNAL"),
    ],
)
def test_what_a_formgate_server_says(code: grpc.StatusCode, reason: str, exit_code: ExitCode, says: str) -> None:
    """Its message, its reason, and a hint where something can be done."""
    error = explain(failed(code, "it is not so", ErrorInfo(reason=reason, domain="formgate")), SERVER)
    assert error.code is exit_code
    assert says in told(error)
    assert "fgt_secret" not in told(error)


def test_when_to_try_again() -> None:
    """A store that is down comes with a time."""
    retry = RetryInfo(retry_delay=Duration(seconds=2))
    error = explain(failed(Code.UNAVAILABLE, "down", ErrorInfo(reason="STORE_UNAVAILABLE"), retry), SERVER)
    assert error.hint.endswith("try again in 2s")


@pytest.mark.parametrize(
    ("code", "exit_code", "says"),
    [
        (Code.UNAVAILABLE, ExitCode.UNDECIDED, ["no server answers at 127.0.0.1:1", "`formgate serve`"]),
        (Code.DEADLINE_EXCEEDED, ExitCode.UNDECIDED, ["no answer from 127.0.0.1:1 within 2.5 s", "--timeout"]),
        (Code.UNIMPLEMENTED, ExitCode.UNDECIDED, ["does not know this call"]),
        (Code.UNKNOWN, ExitCode.UNDECIDED, ["what grpc says (UNKNOWN)"]),
        (Code.CANCELLED, ExitCode.UNDECIDED, ["what grpc says (CANCELLED)"]),
    ],
)  # fmt: skip
def test_what_no_formgate_server_has_said(code: grpc.StatusCode, exit_code: ExitCode, says: list[str]) -> None:
    """An error without our details comes from grpc itself or from something else at that address."""
    error = explain(Failed(code, "what grpc says"), SERVER)
    assert error.code is exit_code
    for each in says:
        assert each in told(error)


@pytest.mark.parametrize("metadata", [None, (), (("grpc-status-details-bin", b"\xff\xff"),)])
def test_broken_details_are_none(metadata: Any) -> None:
    """Nothing in an answer brings the command down."""
    assert explain(Failed(Code.INTERNAL, "", metadata), SERVER).message == "no reason given (INTERNAL)"


def test_each_violation_names_its_option() -> None:
    """What was wrong is said by the words that were typed."""
    violations = [
        BadRequest.FieldViolation(field="grants[1].resource", description="must be a path"),
        BadRequest.FieldViolation(field="key.display_name", description="is too long"),
        BadRequest.FieldViolation(field="update_mask", description="is required"),
    ]
    bad = BadRequest(field_violations=violations)
    error = explain(failed(Code.INVALID_ARGUMENT, "m", ErrorInfo(reason="INVALID_FIELD"), bad), SERVER)
    assert error.code is ExitCode.REFUSED
    assert error.details == (
        "--grant no. 2, resource: must be a path",
        "--name: is too long",
        "update_mask: is required",
    )


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("key_id", "KEY_ID"), ("key.key_id", "KEY_ID"), ("key", "KEY"), ("grants", "--grant"),
        ("grants[0]", "--grant no. 1"), ("grants[0].permissions[3]", "--grant no. 1, permissions[3]"),
        ("other[2]", "other[2]"), ("", ""), ("\n[", "\n["),
    ],
)  # fmt: skip
def test_how_fields_are_spelled(path: str, shown: str) -> None:
    """A field that is no option keeps its name."""
    assert spelled(path, SPELLINGS) == shown
