"""KeyService: the life of a key."""

from __future__ import annotations

from formgate.v1 import keys_pb2 as pb
from formgate_server.core.copy_key import CopyKey
from formgate_server.core.create_key import CreateKey
from formgate_server.core.delete_key import DeleteKey
from formgate_server.core.model import Caller, KeyState
from formgate_server.core.read_keys import ReadKeys
from formgate_server.core.reveal_key import RevealKey
from formgate_server.core.rotate_key import RotateKey
from formgate_server.core.set_key_state import SetKeyState
from formgate_server.core.update_key import UpdateKey
from formgate_server.rpc import convert


class KeyServicer:
    """Keys."""

    def __init__(  # noqa: PLR0913 - a use case a method
        self,
        *,
        create: CreateKey,
        read: ReadKeys,
        update: UpdateKey,
        set_state: SetKeyState,
        copy: CopyKey,
        delete: DeleteKey,
        reveal: RevealKey,
        rotate: RotateKey,
    ) -> None:
        self._create = create
        self._read = read
        self._update = update
        self._set_state = set_state
        self._copy = copy
        self._delete = delete
        self._reveal = reveal
        self._rotate = rotate

    async def create_key(self, request: pb.CreateKeyRequest, caller: Caller) -> pb.CreateKeyResponse:
        """Make a key."""
        key, secret = await self._create(caller, convert.new_key(request))
        return pb.CreateKeyResponse(key=convert.key(key), secret=secret)

    async def get_key(self, request: pb.GetKeyRequest, caller: Caller) -> pb.GetKeyResponse:
        """Read a key."""
        return pb.GetKeyResponse(key=convert.key(await self._read.get(caller, request.key_id)))

    async def list_keys(self, request: pb.ListKeysRequest, caller: Caller) -> pb.ListKeysResponse:
        """List an account's keys."""
        wanted = convert.key_filter(request)
        page = await self._read.list(caller, wanted, request.page_size, request.page_token)
        return pb.ListKeysResponse(keys=map(convert.key, page.rows), next_page_token=page.next_token)

    async def update_key(self, request: pb.UpdateKeyRequest, caller: Caller) -> pb.UpdateKeyResponse:
        """Change what a key may do."""
        key, paths = request.key, convert.mask(request.update_mask)
        done = await self._update(caller, key.key_id, key.etag, paths, convert.key_values(key, paths))
        return pb.UpdateKeyResponse(key=convert.key(done.result), effective_time=convert.timestamp(done.effective_time))

    async def revoke_key(self, request: pb.RevokeKeyRequest, caller: Caller) -> pb.RevokeKeyResponse:
        """End a key for ever."""
        done = await self._set_state(caller, request.key_id, KeyState.REVOKED, "RevokeKey", request.reason_note)
        return pb.RevokeKeyResponse(key=convert.key(done.result), effective_time=convert.timestamp(done.effective_time))

    async def disable_key(self, request: pb.DisableKeyRequest, caller: Caller) -> pb.DisableKeyResponse:
        """Switch a key off."""
        done = await self._set_state(caller, request.key_id, KeyState.DISABLED, "DisableKey", request.reason_note)
        return pb.DisableKeyResponse(
            key=convert.key(done.result), effective_time=convert.timestamp(done.effective_time)
        )

    async def enable_key(self, request: pb.EnableKeyRequest, caller: Caller) -> pb.EnableKeyResponse:
        """Switch a key on."""
        done = await self._set_state(caller, request.key_id, KeyState.ENABLED, "EnableKey", request.reason_note)
        return pb.EnableKeyResponse(key=convert.key(done.result), effective_time=convert.timestamp(done.effective_time))

    async def copy_key(self, request: pb.CopyKeyRequest, caller: Caller) -> pb.CopyKeyResponse:
        """Make a key like another."""
        key, secret = await self._copy(caller, request.key_id, request.display_name)
        return pb.CopyKeyResponse(key=convert.key(key), secret=secret)

    async def delete_key(self, request: pb.DeleteKeyRequest, caller: Caller) -> pb.DeleteKeyResponse:
        """Delete a key."""
        done = await self._delete(caller, request.key_id)
        return pb.DeleteKeyResponse(effective_time=convert.timestamp(done.effective_time))

    async def reveal_key(self, request: pb.RevealKeyRequest, caller: Caller) -> pb.RevealKeyResponse:
        """Tell a recoverable key's secret again."""
        return pb.RevealKeyResponse(secret=await self._reveal(caller, request.key_id))

    async def rotate_key(self, request: pb.RotateKeyRequest, caller: Caller) -> pb.RotateKeyResponse:
        """Give a key a new secret."""
        overlap = convert.duration(request, "overlap") or 0
        done = await self._rotate(caller, request.key_id, overlap)
        key, secret = done.result
        effective_time = convert.timestamp(done.effective_time)
        return pb.RotateKeyResponse(key=convert.key(key), secret=secret, effective_time=effective_time)
