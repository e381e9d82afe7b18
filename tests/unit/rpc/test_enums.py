"""The core's enums and the contract's are the same."""

from enum import IntEnum

import pytest
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper

from formgate.rules import wording
from formgate.rules.grants import Level
from formgate.rules.reason import Reason
from formgate.v1 import authorization_pb2, resources_pb2
from formgate_server import metrics
from formgate_server.core import explain, model
from formgate_server.core.verdict import StepOutcome
from formgate_server.policies import policy

PAIRS = [
    (Reason, authorization_pb2.Reason, "REASON_"),
    (StepOutcome, authorization_pb2.StepOutcome, "STEP_OUTCOME_"),
    (model.UsageOutcome, authorization_pb2.Outcome, "OUTCOME_"),
    (Level, resources_pb2.Level, "LEVEL_"),
    (model.Environment, resources_pb2.Environment, "ENVIRONMENT_"),
    (model.KeyState, resources_pb2.KeyState, "KEY_STATE_"),
    (model.AccountState, resources_pb2.AccountState, "ACCOUNT_STATE_"),
    (model.Holder, resources_pb2.Holder, "HOLDER_"),
    (model.Period, resources_pb2.Calendar, "CALENDAR_"),
    (model.Role, resources_pb2.Role, "ROLE_"),
    (model.ServiceRole, resources_pb2.ServiceRole, "SERVICE_ROLE_"),
]


@pytest.mark.parametrize(("core", "wire", "prefix"), PAIRS, ids=lambda value: getattr(value, "__name__", None))
def test_core_and_contract_have_the_same_values(core: type[IntEnum], wire: EnumTypeWrapper, prefix: str) -> None:
    """Every value of one is in the other under the same number; 0 is the contract's «not said» alone."""
    of_core = {f"{prefix}{name}": member.value for name, member in core.__members__.items()}
    assert of_core | {f"{prefix}UNSPECIFIED": 0} == dict(wire.items())


def test_a_reason_is_known_everywhere() -> None:
    """Every reason to deny has its words in every policy, its step in an explanation and its metric."""
    denials = set(Reason) - {Reason.OK}
    for each in policy.load().by_name.values():
        assert set(each.denials) == denials
    assert set(wording.MESSAGES) == set(wording.STATUSES) == denials
    assert {reason for reasons in explain.STEPS.values() for reason in reasons} == denials
    assert set(metrics.checks) == set(Reason)
