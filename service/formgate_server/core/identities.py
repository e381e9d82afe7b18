"""Which calling service shows a client certificate: by the names in it, without a token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from formgate_server.core.errors import UnauthenticatedError
from formgate_server.core.model import Caller


@dataclass(frozen=True, slots=True)
class Identities:
    """What each certificate's name may do. A name is a SPIFFE id, ``spiffe://…``, or ``dns:`` and a DNS name."""

    by_name: Mapping[str, Caller]

    def __call__(self, names: Collection[str]) -> Caller:
        """Return the caller whose certificate has these names. Raises UnauthenticatedError.

        The certificate must have been verified. One with the names of two callers is neither's.
        """
        found = {self.by_name[name] for name in names if name in self.by_name}
        if len(found) == 1:
            return found.pop()
        if found:
            message = "this client certificate has the names of several identities: show one of a single identity"
        else:
            message = (
                "no identity is known for this client certificate: show one that is, or a service token as metadata:"
                " authorization: Bearer <token>"
            )
        raise UnauthenticatedError(message, reason="UNKNOWN_CLIENT_CERTIFICATE")
