"""What a request is answered with, as its platform words it: answer.py AUTHORIZATION [METHOD|PERMISSION] [RESOURCE].

AUTHORIZATION is the request's whole header, such as "Bearer pf_…"; empty: it has none.
"""

import os
import sys

import grpc

from formgate.v1.authorization_pb2 import CheckKeyRequest
from formgate.v1.authorization_pb2_grpc import AuthorizationServiceStub

formgate = AuthorizationServiceStub(grpc.insecure_channel(os.environ.get("FORMGATE_ADDRESS", "127.0.0.1:50051")))
token = (("authorization", f"Bearer {os.environ['FORMGATE_TOKEN']}"),)


def main(authorization: str, wanted: str = "", resource: str = "") -> None:
    """Ask, and print the answer's status and body; 200 means that the request may go on."""
    request = CheckKeyRequest(authorization=authorization, resources=[resource] if resource else [])
    if "." in wanted:
        request.permissions.append(wanted)
    else:
        request.http_method = wanted
    verdict = formgate.CheckKey(request, timeout=3, metadata=token)
    print(200 if verdict.allowed else f"{verdict.http_denial.status} {verdict.http_denial.body.decode()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
