"""Protect an application's routes: ``asgi`` (FastAPI, Starlette), ``wsgi`` (Flask, Django), ``grpc`` (grpcio servers).

A table of rules says which request needs what; what none matches is denied. See docs/client/middleware.md.
"""

from formgate.middleware.answers import Answers
from formgate.middleware.current import current_verdict
from formgate.middleware.rules import ByRoute, Open, Rule

__all__ = ["Answers", "ByRoute", "Open", "Rule", "current_verdict"]
