"""The wires that carry the contract."""
