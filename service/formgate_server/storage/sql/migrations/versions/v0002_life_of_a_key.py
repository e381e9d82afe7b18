"""The life of a key: members, rotation, tombstones, sealed secrets, sums by tag, and the chain of the audit trail.

It only adds. What stood in the audit trail before has no MAC: to sign it now would vouch for rows that nobody guarded.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_ID = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
_SORTED = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Add."""
    op.create_table(
        "members",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("member_id", _ID, nullable=False),
        sa.Column("role", sa.SmallInteger(), nullable=False),
        sa.Column("permissions", sa.JSON(), nullable=False),
        sa.Column("level", sa.SmallInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("update_time", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_members_account_id"),
        sa.PrimaryKeyConstraint("account_id", "member_id", name="pk_members"),
    )
    op.create_index(
        "ix_members_account_id_create_time_member_id", "members", ["account_id", "create_time", "member_id"]
    )
    op.create_table(
        "usage_tag_hours",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("tag", _SORTED, nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("value", _SORTED, nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "tag", "hour", "value", name="pk_usage_tag_hours"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_usage_hours_account_id_hour", "usage_hours", ["account_id", "hour"])
    op.add_column("keys", sa.Column("delete_time", sa.BigInteger()))
    op.add_column("secrets", sa.Column("expire_time", sa.BigInteger()))
    op.add_column("secrets", sa.Column("sealed", sa.LargeBinary()))
    op.add_column("secrets", sa.Column("sealing_key_id", _ID))
    op.add_column("audit_events", sa.Column("mac", sa.LargeBinary(32)))
    op.add_column("audit_events", sa.Column("mac_key_id", _ID))
    op.create_index("ix_audit_events_account_id_target_sequence", "audit_events", ["account_id", "target", "sequence"])
    op.add_column("audit_heads", sa.Column("mac", sa.LargeBinary(32)))
