"""May this request go on? Prints the HTTP status and body to answer with: ask_formgate.py METHOD RESOURCE."""

import os
import sys

import grpc

from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate.v1.authorization_pb2_grpc import AuthorizationServiceStub

formgate = AuthorizationServiceStub(grpc.insecure_channel(os.environ.get("FORMGATE_ADDRESS", "127.0.0.1:50051")))
token = (("authorization", f"Bearer {os.environ['FORMGATE_TOKEN']}"),)


def ask(authorization: str, method: str, resource: str) -> tuple[int, bytes]:
    """Return the status and body to answer with; only 200 lets the request in. Whatever goes wrong, it is not 200."""
    request = CheckKeyRequest(authorization=authorization, http_method=method, resources=[resource])
    try:
        verdict = formgate.CheckKey(request, timeout=3, metadata=token)
    except grpc.RpcError:
        return 503, b"could not be decided; try again"
    return (200, b"") if verdict.allowed else (verdict.http_denial.status or 403, verdict.http_denial.body)


if __name__ == "__main__":
    status, body = ask(f"Bearer {os.environ['FORMGATE_KEY']}", *sys.argv[1:3])
    print(f"{status} {body.decode()}".rstrip())
