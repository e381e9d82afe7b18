"""May this request go on? Prints the HTTP status and body to answer with: ask_formgate.py METHOD RESOURCE."""

import os
import sys

from formgate import Client

with Client() as formgate:  # where, and as whom: FORMGATE_ADDRESS and FORMGATE_TOKEN
    verdict = formgate.check(
        authorization=f"Bearer {os.environ['FORMGATE_KEY']}",  # of a service: the request's own header, as it came
        http_method=sys.argv[1],
        resources=[sys.argv[2]],
    )
if verdict.allowed:
    print(200)
else:
    answer = verdict.http_denial
    print(verdict.http_status, answer.body.decode() if answer else "")
