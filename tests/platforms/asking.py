"""What the acceptance tests of the platforms ask a server."""

from __future__ import annotations

from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from formgate.v1 import authorization_pb2 as pb
from formgate.v1 import resources_pb2 as nouns
from formgate.v1.accounts_pb2 import ListPoliciesRequest, SetMemberRequest
from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate.v1.keys_pb2 import CreateKeyRequest, GetKeyRequest, ListKeysRequest, RevealKeyRequest, UpdateKeyRequest
from tests.support.client import Client

UNAUTHORIZED = {"content-type": "application/json", "www-authenticate": "Bearer"}
"""The headers of a 401."""


class Asker(Client):
    """A calling service that makes keys, changes them and checks them."""

    def key(self, account: str, **fields: Any) -> tuple[nouns.Key, str]:
        """Make a key; returns it and its secret."""
        made = self(CreateKeyRequest(account_id=account, **fields))
        return made.key, made.secret

    def secret(self, account: str, **fields: Any) -> str:
        """Make a key and return its secret."""
        return self.key(account, **fields)[1]

    def update(self, key: nouns.Key, **fields: Any) -> nouns.Key:
        """Change these fields of a key."""
        changed = nouns.Key(key_id=key.key_id, **fields)
        after: nouns.Key = self(UpdateKeyRequest(key=changed, update_mask=FieldMask(paths=list(fields)))).key
        return after

    def member(self, account: str, member_id: str, **fields: Any) -> str:
        """Set a member and return its id."""
        self(SetMemberRequest(account_id=account, member_id=member_id, **fields))
        return member_id

    def check(self, secret: str, **asked: Any) -> pb.CheckKeyResponse:
        """Check a key, shown as its platform's users do."""
        answer: pb.CheckKeyResponse = self(CheckKeyRequest(authorization=f"Bearer {secret}", **asked))
        return answer

    def told(self, secret: str, **asked: Any) -> str:
        """Check a key and return the name of the reason."""
        answer = self.check(secret, **asked)
        assert answer.allowed == (answer.reason == pb.REASON_OK) == (answer.http_status == 200)
        return reason(answer)

    def policy(self, name: str) -> nouns.Policy:
        """Return what the server tells of a policy."""
        (found,) = (each for each in self.all(ListPoliciesRequest()) if each.name == name)
        policy: nouns.Policy = found
        return policy

    def readings(self, key: nouns.Key) -> list[Message]:
        """Return what is told of a key once it is made."""
        return [
            self(GetKeyRequest(key_id=key.key_id)),
            self(ListKeysRequest(account_id=key.account_id)),
        ]

    def shown_once(self, account: str, **fields: Any) -> None:
        """Assert that a new key's secret is told at its creation and never again."""
        key, secret = self.key(account, **fields)
        assert self.check(secret).key.key_id == key.key_id
        for answer in (*self.readings(key), key, self.check(secret)):
            assert secret.encode() not in answer.SerializeToString()
        refusal = self.refusal(RevealKeyRequest(key_id=key.key_id))
        assert refusal.reason == "NOT_RECOVERABLE"
        assert secret not in refusal.message


def reason(answer: pb.CheckKeyResponse) -> str:
    """Return the name of a verdict's reason."""
    return pb.Reason.Name(answer.reason).removeprefix("REASON_")


def http(answer: pb.CheckKeyResponse) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body that a denial has over HTTP."""
    denial = answer.http_denial
    assert not answer.allowed
    assert denial.status == answer.http_status
    headers = {header.name: header.value for header in denial.headers}
    assert len(headers) == len(denial.headers)
    return denial.status, headers, denial.body


def grant(resource: str, level: Any = nouns.LEVEL_UNSPECIFIED, *permissions: str) -> nouns.Grant:
    """Make a grant."""
    return nouns.Grant(resource=resource, level=level, permissions=permissions)


def answers(ask: Asker, secret: str, methods: str, **asked: Any) -> dict[str, bool]:
    """Return which of these HTTP methods (separated by spaces) a key may use."""
    return {method: ask.check(secret, http_method=method, **asked).allowed for method in methods.split()}
