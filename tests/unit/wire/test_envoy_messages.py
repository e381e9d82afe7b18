"""Our copies of Envoy's messages: another number or kind of a field, and we would read and write something else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from formgate_server.wire.envoy import ext_authz_pb2

# By number, as google.protobuf.FieldDescriptorProto.Type has them.
KINDS: tuple[str, ...] = (
    "",
    "double",
    "float",
    "int64",
    "uint64",
    "int32",
    "fixed64",
    "fixed32",
    "bool",
    "string",
    "group",
    "message",
)
KINDS += ("bytes", "uint32", "enum")
HERE = Path(__file__).parent
LINES = (HERE / "envoy-messages.txt").read_text(encoding="utf-8").splitlines()
THEIRS = {tuple(line.split(maxsplit=2)[:2]): line.split(maxsplit=2)[2] for line in LINES if not line.startswith("#")}
PROTO = Path(ext_authz_pb2.__file__).with_name("ext_authz.proto").read_text(encoding="utf-8")
NAMES = {ours: theirs for theirs, ours in re.findall(r"^// (envoy\.[\w.]+)\nmessage (\w+)", PROTO, re.MULTILINE)}


def _kind(field: Any) -> str:
    if field.message_type is None:
        kind = KINDS[field.type]
    elif field.message_type.GetOptions().map_entry:
        kind = f"{NAMES[field.containing_type.name]}.{field.message_type.name}"
    else:
        kind = NAMES.get(field.message_type.name, field.message_type.full_name)
    return f"repeated {kind}" if field.is_repeated else kind


def test_every_field_is_envoys() -> None:
    """Each field of each message has the number, name and kind that Envoy's has; an enum may be an int32."""
    seen = 0
    for ours, theirs in NAMES.items():
        for field in ext_authz_pb2.DESCRIPTOR.message_types_by_name[ours].fields:
            name, kind = THEIRS[theirs, str(field.number)].split(" ", 1)
            assert name == field.name, field.full_name
            if kind not in {"envoy.type.v3.StatusCode", "envoy.config.core.v3.HeaderValueOption.HeaderAppendAction"}:
                assert kind == _kind(field), field.full_name
            seen += 1
    assert seen > 25
    assert set(NAMES) == set(ext_authz_pb2.DESCRIPTOR.message_types_by_name)


def test_no_message_has_envoys_name() -> None:
    """A process may load Envoy's own stubs beside ours: no two files declare one name."""
    assert ext_authz_pb2.DESCRIPTOR.package == "formgate_server.envoy"
    assert ext_authz_pb2.DESCRIPTOR.name.startswith("formgate_server/")
