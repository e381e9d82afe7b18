"""Several processes that serve one port, and the one that keeps them running.

``supervisor`` starts a ``child`` for each worker and another when that one ends or stands still; ``port`` keeps their
port from other servers; ``__main__`` is what a worker runs. A worker is started fresh, never forked: gRPC's threads do
not survive a fork.

Each worker's standard input is a socket to the supervisor, and all that passes there is a line of JSON:

- to the worker: first what it is to serve (``settings``, with their secrets: a command line or an environment can be
  read by others), where it counts (``metrics``); then ``"drain"``: take no new calls and end; ``"hurry"``: end now.
- from the worker: ``{"beat": …}`` every second that its event loop runs, with the garbage collector's figures;
  ``{"ready": true}`` when it serves; ``{"refused": "why"}`` before it ends because it can not start.

The end of the stream tells the worker that the supervisor is gone: it ends at once. Linux kills it then in any case.
"""
