"""Redis and Valkey: a small pipelined client, and what is built on it.

``client.connect`` is where to begin. A request goes ``base`` (``single``, ``sentinel`` or ``cluster``) → ``line`` →
``connection``; ``refusals`` says what an error reply means.
"""
