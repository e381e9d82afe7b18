"""Formgate: the client's side. `formgate.v1` holds the generated stubs, `formgate.rules` the rules of a verdict."""
