"""Several replicas: changes to follow, marks that several raise, and charges that wait to be made.

It only adds: a server of the version before goes on beside it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_ID = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")


def upgrade() -> None:
    """Add."""
    op.create_table(
        "changes",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "epoch", name="pk_changes"),
    )
    op.create_index("ix_changes_time", "changes", ["time"])
    op.create_table(
        "usage_outbox",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("record_id", _ID, nullable=False),
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("charge_units", sa.BigInteger(), nullable=False),
        sa.Column("refund_request_id", _ID, nullable=False),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "record_id", name="pk_usage_outbox"),
    )
    op.create_index("ix_usage_outbox_time", "usage_outbox", ["time"])
    op.add_column("reservations", sa.Column("serial", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("reservations", sa.Column("expire_time", sa.BigInteger()))
    op.create_index("ix_reservations_expire_time", "reservations", ["expire_time"])
    op.create_index("ix_usage_records_occur_time", "usage_records", ["occur_time"])
    op.create_index("ix_usage_hours_hour", "usage_hours", ["hour"])
    op.create_index("ix_usage_tag_hours_hour", "usage_tag_hours", ["hour"])
