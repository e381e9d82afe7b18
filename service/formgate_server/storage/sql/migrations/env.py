"""Alembic's environment: ``migrate.py`` runs it, with its connection and in its transaction."""

from alembic import context

from formgate_server.storage.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True)
context.run_migrations()
