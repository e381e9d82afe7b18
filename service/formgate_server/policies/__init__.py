"""The bundled policies, and the reader of policy files."""
