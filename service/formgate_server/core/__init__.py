"""The core, pure: standard library and ``formgate.rules`` only, an explicit clock, no I/O.

Instants are whole microseconds since the Unix epoch, durations whole microseconds, both plain ``int``.
"""
