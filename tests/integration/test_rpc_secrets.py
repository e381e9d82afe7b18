"""No secret is told by anything but the answer that makes it, wherever callers put it."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import CreateAccountRequest, CreateServiceTokenRequest, RevokeServiceTokenRequest
from formgate.v1.authorization_pb2 import BatchCheckKeysRequest, CheckKeyRequest, RecordUsageRequest, UsageRecord
from formgate.v1.keys_pb2 import (
    CreateKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    GetKeyRequest,
    ListKeysRequest,
    RevokeKeyRequest,
    UpdateKeyRequest,
)
from tests.support.client import Client, Refusal, methods, path
from tests.support.server import Server

ACCOUNT = "acme"


@dataclass
class World:
    """A server, who calls it, and every secret that there is."""

    server: Server
    manager: Client
    secrets: list[str]
    key_ids: list[str]
    told: list[str] = field(default_factory=list)
    """What refusals, verdicts and reflection told."""


@pytest.fixture(scope="module", params=["console", "json"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A server at debug level, in each form of its log, with keys and tokens in all states."""
    folder = tmp_path_factory.mktemp("secrets")
    with Server(folder, "--log-level", "debug", "--log-format", request.param) as server:
        manager = Client(server.address, server.token)
        world = World(server, manager, [server.token], [])
        manager(CreateAccountRequest(account_id=ACCOUNT))
        for change in (None, DisableKeyRequest, RevokeKeyRequest):
            for environment in (nouns.ENVIRONMENT_LIVE, nouns.ENVIRONMENT_TEST):
                made = manager(CreateKeyRequest(account_id=ACCOUNT, environment=environment))
                world.secrets.append(made.secret)
                world.key_ids.append(made.key.key_id)
                if change is not None:
                    manager(change(key_id=made.key.key_id))
        for role in nouns.ServiceRole.values()[1:]:
            world.secrets.append(manager(CreateServiceTokenRequest(role=role)).secret)
        ended = manager(CreateServiceTokenRequest(role=nouns.SERVICE_ROLE_MANAGER))
        world.secrets.append(ended.secret)
        manager(RevokeServiceTokenRequest(token_id=ended.service_token.token_id))
        yield world
        manager.close()


def leaks(text: str | bytes, secrets: list[str]) -> list[str]:
    """Return the secrets of which ``text`` holds half, at the least: cut off is told too."""
    content = text.encode() if isinstance(text, str) else text
    return [secret for secret in secrets if any(half.encode() in content for half in (secret[-49:-24], secret[-25:]))]


def use(world: World) -> None:
    """Use every secret as it is meant to be used."""
    for secret in world.secrets:
        for credential in ({"key": secret}, {"authorization": f"Bearer {secret}"}, {"authorization": secret}):
            check = CheckKeyRequest(**credential, explain=True, source_ip="192.0.2.1", request_id="r")  # type: ignore[arg-type]
            world.told.append(str(world.manager(check)))
            world.told.append(str(world.manager(BatchCheckKeysRequest(requests=[check, check]))))
        client = Client(world.server.address, secret)
        world.told.append(str(client.outcome(ListKeysRequest(account_id=ACCOUNT))))
        client.close()
    for key_id in world.key_ids:
        world.told.append(str(world.manager.outcome(GetKeyRequest(key_id=key_id))))
        world.told.append(str(world.manager.outcome(EnableKeyRequest(key_id=key_id))))
        mask = FieldMask(paths=["metadata"])
        world.told.append(str(world.manager.outcome(UpdateKeyRequest(key=nouns.Key(key_id=key_id), update_mask=mask))))


def misplaced(message_type: Any, put: Callable[[], str]) -> Iterator[Message]:
    """Yield the message with each of its texts, at any depth, set to ``put()``: one at a time."""
    for each in message_type.DESCRIPTOR.fields:
        message: Any = message_type()
        kind: Any = each.message_type
        if each.type == FieldDescriptor.TYPE_STRING:
            if each.is_repeated:
                getattr(message, each.name).append(put())
            else:
                setattr(message, each.name, put())
            yield message
        elif kind is not None and kind.GetOptions().map_entry:
            yield message_type(**{each.name: {put(): ""}})
            yield message_type(**{each.name: {"name": put()}})
        elif kind is not None:
            for inner in misplaced(GetMessageClass(kind), put):
                part = message_type()
                target = getattr(part, each.name)
                (target.add() if each.is_repeated else target).CopyFrom(inner)
                yield part


# Here a caller's words are kept: a secret among them is stored, and told again, by its own doing.
KEPT = ("display_name", "metadata", "note", "tags", "created_by", "record_id", "operation", "resource")


def misuse(world: World) -> None:
    """Put every secret wherever else a caller could, where it is not meant to be kept."""
    at = 0

    def put() -> str:
        nonlocal at
        at += 1
        return world.secrets[at % len(world.secrets)]

    for method in methods():
        for request in misplaced(GetMessageClass(method.input_type), put):
            text = str(request)
            if any(f"{name}" in text for name in KEPT) or method.name in ("CreateAccount", "CreateKey"):
                continue
            outcome = world.manager.raw(path(method), request.SerializeToString())
            if isinstance(outcome, Refusal):
                world.told.append(repr(outcome))
            elif method.name == "CheckKey":
                world.told.append(repr(GetMessageClass(method.output_type).FromString(outcome)))
    for secret in world.secrets:
        _misuse_in_known_places(world, secret)


def _misuse_in_known_places(world: World, secret: str) -> None:
    manager, key_id = world.manager, world.key_ids[0]
    for request in (
        CreateKeyRequest(account_id=secret),
        CreateKeyRequest(account_id=ACCOUNT, request_id="x/" + secret),
        CreateKeyRequest(account_id=ACCOUNT, grants=[nouns.Grant(resource="a b" + secret, permissions=[secret])]),
        CreateKeyRequest(account_id=ACCOUNT, display_name=secret * 10),
        UpdateKeyRequest(key=nouns.Key(key_id=key_id, etag=secret), update_mask=FieldMask(paths=["grants"])),
        UpdateKeyRequest(key=nouns.Key(key_id=key_id), update_mask=FieldMask(paths=[secret])),
        ListKeysRequest(account_id=ACCOUNT, page_token=secret),
        RevokeKeyRequest(key_id=secret, reason_note=secret),
        RecordUsageRequest(records=[UsageRecord(record_id="r", key_id=secret, units=1)]),
        CheckKeyRequest(key=secret[:-1], permissions=[secret], resources=[f"forms/{secret}"], explain=True),
        CheckKeyRequest(key=world.secrets[1], permissions=[secret], resources=[f"forms/{secret}"], explain=True),
        CheckKeyRequest(key=world.secrets[1], api_group=secret, http_method=secret, explain=True),
    ):
        world.told.append(repr(manager.outcome(request)))
    get = GetKeyRequest(key_id="nothing")
    for name in ("formgate-actor-ip", "x-api-key", "cookie", "authorization"):
        world.told.append(repr(manager.outcome(get, (name, secret))))
    for name in ("formgate-actor", "x-api-key-bin"):
        world.told.append(repr(manager.outcome(get, (name, secret.encode() if name.endswith("-bin") else secret))))
    for value in (f"Basic {secret}", secret, f"Bearer  {secret}", f"Bearer {secret}x"):
        sent = world.manager.raw("/formgate.v1.KeyService/GetKey", b"", (("authorization", value),))
        world.told.append(repr(sent))
    sent = world.manager.raw(f"/formgate.v1.KeyService/{secret}", b"\xff" + secret.encode())
    world.told.append(repr(sent))
    sent = world.manager.raw("/formgate.v1.KeyService/GetKey", b"\x0a\xff" + secret.encode())
    world.told.append(repr(sent))
    for url in (f"/{secret}", f"/metrics?key={secret}"):
        world.told.append(_http(world.server, url))


def _http(server: Server, url: str) -> str:
    request = urllib.request.Request(f"http://{server.http}{url}")
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return str(response.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return str(error.read().decode())


def _reflected(world: World) -> str:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(world.manager.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        *(
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=method.containing_service.full_name)
            for method in methods()
        ),
    ]
    return str(list(stub.ServerReflectionInfo(iter(asked), metadata=world.manager.metadata, timeout=5)))


def _files(folder: Path) -> dict[str, bytes]:
    private = {"pepper", "manager.token"}
    return {each.name: each.read_bytes() for each in folder.rglob("*") if each.is_file() and each.name not in private}


def test_no_secret_is_kept_or_told(world: World) -> None:
    """Not in logs, output, errors, verdicts, the files of the data folder, metrics or reflection."""
    use(world)
    misuse(world)
    assert len(world.told) > 400
    assert [text for text in world.told if leaks(text, world.secrets)] == []
    # The log is written by then: a call's line precedes its answer.
    assert leaks(world.server.log, world.secrets) == []
    assert "call" in world.server.log
    assert leaks(world.server.stdout.read_bytes(), world.secrets) == []
    files = _files(world.server.data)
    assert {"formgate.db"} <= files.keys()
    assert {name: found for name, content in files.items() if (found := leaks(content, world.secrets))} == {}
    metrics = _http(world.server, "/metrics")
    assert "formgate_checks_total" in metrics
    assert leaks(metrics, world.secrets) == []
    assert not any(key_id in metrics for key_id in (*world.key_ids, ACCOUNT))
    assert leaks(_reflected(world), world.secrets) == []


def test_a_secret_in_a_text_that_is_kept_is_not_logged(world: World) -> None:
    """To store it there is the caller's doing; the log and errors about it show it all the same not."""
    manager = world.manager
    for secret in tuple(world.secrets):
        fields: dict[str, Any] = {"display_name": secret, "metadata": {secret: secret}}
        made = manager(CreateKeyRequest(account_id=ACCOUNT, created_by=secret, **fields), ("formgate-actor", secret))
        manager(RevokeKeyRequest(key_id=made.key.key_id, reason_note=secret), ("formgate-actor", f"x{secret}y"))
        manager(CreateServiceTokenRequest(role=nouns.SERVICE_ROLE_CHECKER, display_name=secret))
        manager(CreateAccountRequest(account_id=secret, display_name=secret))
        refusal = manager.refusal(CreateAccountRequest(account_id=secret))
        assert leaks(repr(refusal), world.secrets) == []
        record = UsageRecord(record_id=secret, key_id=made.key.key_id, resource=secret, tags={secret: secret})
        manager(RecordUsageRequest(records=[record, record]))
        world.secrets.append(made.secret)
    assert leaks(world.server.log, world.secrets) == []


def test_no_secret_is_logged_when_the_server_ends(world: World) -> None:
    """Its last words are of no key; what it logged in all is lines, and forged by none."""
    use(world)
    world.server.stop()
    log = world.server.log
    assert leaks(log, world.secrets) == []
    assert "Traceback" not in log
    if "json" in world.server.options:
        assert all(line.startswith("{") and line.endswith("}") for line in log.splitlines())
    else:
        assert all(re.match(r"\d{4}-\d\d-\d\dT", line) for line in log.splitlines())
