"""Where what Formgate knows is kept: each folder implements ports of ``core.ports``, one kind of store a folder."""
