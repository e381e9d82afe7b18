"""Which servers may use the tables: those of the version before, too, as long as migrations only add.

So an upgrade by turns has no moment at which an old server that is restarted is refused, and can be taken back. A
migration that takes something away sets `oldest` to the first revision that does without it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add."""
    compatibility = op.create_table(
        "compatibility",
        sa.Column("oldest", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("oldest", name="pk_compatibility"),
    )
    op.bulk_insert(compatibility, [{"oldest": "0004"}])
