"""`formgate doctor`: looks at all that a server needs, and says of each thing how it is and what to do.

It reads and never writes. ``settings`` are looked at by ``machine`` (files, policies, certificates, this machine), by
``stores`` (the database and Redis) and by ``service`` (whether it answers); ``examination`` puts them side by side, and
gives each its time. A look that is not over by then is a finding as well.
"""
