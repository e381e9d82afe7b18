"""LeaseKey, SettleLeases and WatchEpochs over a real server: what is told, to whom, and how it ends."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode

from formgate.v1 import authorization_pb2 as pb
from formgate.v1.accounts_pb2 import RevokeServiceTokenRequest
from formgate.v1.authorization_pb2_grpc import AuthorizationServiceStub
from formgate.v1.keys_pb2 import CreateKeyRequest, DisableKeyRequest, EnableKeyRequest
from formgate.v1.resources_pb2 import HOLDER_KEY, SERVICE_ROLE_CHECKER, Limit
from tests.support.client import SECOND_POLICY, Client, Refusal, new_account, new_token
from tests.support.server import Server

pytest_plugins = ("tests.support.rpc",)

TIMEOUT = 10.0


class Watch:
    """A call of WatchEpochs."""

    def __init__(self, client: Client) -> None:
        self._requests: queue.SimpleQueue[pb.WatchEpochsRequest | None] = queue.SimpleQueue()
        stub: Any = AuthorizationServiceStub(client.channel)
        self.call = stub.WatchEpochs(iter(self._requests.get, None), metadata=client.metadata, timeout=TIMEOUT)

    def send(self, *watch: str, forget: tuple[str, ...] = ()) -> None:
        """Watch accounts, and watch others no more."""
        self._requests.put(pb.WatchEpochsRequest(watch=watch, forget=forget))

    def told(self) -> dict[str, int]:
        """Return what is told next."""
        return {each.account_id: each.epoch for each in next(self.call).epochs}

    def end(self) -> Refusal | None:
        """Return how it ended, by itself."""
        try:
            for _ in self.call:
                pass
        except grpc.RpcError as error:
            return Refusal.of(error)
        finally:
            self._requests.put(None)
        return None

    def close(self) -> None:
        """End it."""
        self.call.cancel()
        self._requests.put(None)


@pytest.fixture
def watch() -> Iterator[Callable[[Client], Watch]]:
    """Makes watches, and ends them."""
    made: list[Watch] = []

    def make(client: Client) -> Watch:
        made.append(Watch(client))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_each_new_epoch_is_told(manager: Client, account: str, watch: Callable[[Client], Watch]) -> None:
    """At first the present one, then each as it comes, of what is watched only."""
    key_id = manager(CreateKeyRequest(account_id=account)).key.key_id
    other = new_account(manager)
    watching = watch(manager)
    watching.send(account, other)
    told: dict[str, int] = {}
    while len(told) < 2:
        told |= watching.told()
    manager(DisableKeyRequest(key_id=key_id))
    assert watching.told() == {account: told[account] + 1}
    watching.send(forget=(account,))
    assert watching.told() == {}
    manager(EnableKeyRequest(key_id=key_id))
    watching.send("nobody-s")
    assert watching.told() == {"nobody-s": 0}


@pytest.mark.parametrize("bond", [{"account_id": "other"}, {"policy": SECOND_POLICY}])
def test_a_bound_caller_watches_its_own_only(
    rpc_server: Server, manager: Client, account: str, watch: Callable[[Client], Watch], bond: dict[str, str]
) -> None:
    """Another account's epochs are not told: it is not there."""
    own = new_account(manager, policy=SECOND_POLICY)
    fields = {"account_id": own} if "account_id" in bond else bond
    client = Client(rpc_server.address, new_token(manager, SERVICE_ROLE_CHECKER, **fields)[1])
    watching = watch(client)
    watching.send(own)
    assert set(watching.told()) == {own}
    watching.send(account)
    ended = watching.end()
    assert ended is not None
    assert (ended.code, ended.reason) == (StatusCode.NOT_FOUND, "ACCOUNT_NOT_FOUND")
    client.close()


def test_a_revoked_token_is_told_no_more(
    rpc_server: Server, manager: Client, account: str, watch: Callable[[Client], Watch]
) -> None:
    """The call goes on; its token must be good for each thing that is told."""
    key_id = manager(CreateKeyRequest(account_id=account)).key.key_id
    token_id, secret = new_token(manager, SERVICE_ROLE_CHECKER)
    client = Client(rpc_server.address, secret)
    watching = watch(client)
    watching.send(account)
    watching.told()
    manager(RevokeServiceTokenRequest(token_id=token_id))
    time.sleep(1.1)  # for so long a token is cached
    manager(DisableKeyRequest(key_id=key_id))
    ended = watching.end()
    assert ended is not None
    assert ended.code is StatusCode.UNAUTHENTICATED
    client.close()


def test_a_bad_request_ends_the_call(manager: Client, watch: Callable[[Client], Watch]) -> None:
    """With its field, as any call does."""
    for sent in (("a b",), tuple(map(str, range(1_001)))):
        watching = watch(manager)
        watching.send(*sent)
        ended = watching.end()
        assert ended is not None
        assert (ended.code, ended.fields[0][:5]) == (StatusCode.INVALID_ARGUMENT, "watch")


def test_a_drain_does_not_wait_for_who_watches(tmp_path: Path, watch: Callable[[Client], Watch]) -> None:
    """Whoever watches is told that it is over, and watches elsewhere."""
    with Server(tmp_path, "--drain-seconds", "60") as server:
        client = Client(server.address, server.token)
        watching = watch(client)
        watching.send("acme")
        assert watching.told() == {"acme": 0}
        ended: list[Refusal | None] = []
        thread = threading.Thread(target=lambda: ended.append(watching.end()))
        thread.start()
        began = time.monotonic()
        server.process.terminate()
        assert server.wait() == 0
        assert time.monotonic() - began < 20
        thread.join()
        assert ended == [None]
        client.close()


def test_a_lease_as_it_is_told(manager: Client, account: str) -> None:
    """All that its holder needs; the rules only where they are not known already."""
    limit = Limit(name="rate", holder=HOLDER_KEY, amount=100, window=Duration(seconds=3_600))
    key = manager(CreateKeyRequest(account_id=account, ip_rules=["10.*.*.*"], limits=[limit]))
    asked = pb.LeaseKeyRequest(key=key.secret, want_units=5, source_ip="10.0.0.1", lease_id="l1")
    lease = manager(asked).lease
    assert (lease.lease_id, lease.units, lease.unlimited, lease.duration.seconds) == ("l1", 5, False, 1)
    assert lease.rules.key.key_id == key.key.key_id
    assert (lease.rules.policy, list(lease.rules.ip_rules)) == ("default", ["10.*.*.*"])
    assert [(each.name, each.remaining) for each in lease.limits] == [("rate", 95)]
    again = manager(pb.LeaseKeyRequest(key=key.secret, want_units=5, source_ip="10.0.0.1", rules_id=lease.rules_id))
    assert not again.lease.HasField("rules")
    assert again.lease.rules_id == lease.rules_id
    assert again.lease.lease_id
    left = pb.LeaseSettlement(account_id=account, key_id=key.key.key_id, lease_id="l1", unused=3)
    assert list(manager(pb.SettleLeasesRequest(settlements=[left, left])).given_back) in ([3, 0], [0, 3])
    refused = manager.refusal(pb.LeaseKeyRequest(key=key.secret))
    assert (refused.code, refused.fields) == (StatusCode.INVALID_ARGUMENT, ("want_units",))
