"""The rules by which a key is decided, pure: the server and the client's leases share this one copy."""
