"""The first tables: accounts, keys, service tokens, the audit trail, usage and the counters' marks."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_ID = sa.String(64).with_variant(sa.String(64, collation="C"), "postgresql")
_SORTED = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "accounts",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("policy", _ID, nullable=False),
        sa.Column("plan", _ID, nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("time_zone", sa.Text(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name="pk_accounts"),
    )
    op.create_index("ix_accounts_create_time_account_id", "accounts", ["create_time", "account_id"])
    op.create_table(
        "audit_events",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("sequence", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", _SORTED, nullable=False),
        sa.Column("token_id", _ID, nullable=False),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("actor_ip", sa.Text(), nullable=False),
        sa.Column("before", sa.JSON(none_as_null=True)),
        sa.Column("after", sa.JSON(none_as_null=True)),
        sa.Column("note", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "sequence", name="pk_audit_events"),
    )
    op.create_table(
        "audit_heads",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", name="pk_audit_heads"),
    )
    op.create_table(
        "fingerprints",
        sa.Column("name", _SORTED, nullable=False),
        sa.Column("value", _SORTED, nullable=False),
        sa.PrimaryKeyConstraint("name", "value", name="pk_fingerprints"),
    )
    op.create_table(
        "reservations",
        sa.Column("counter_id", _SORTED, nullable=False),
        sa.Column("state", sa.JSON(), nullable=False),
        sa.Column("ahead", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("counter_id", name="pk_reservations"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "service_tokens",
        sa.Column("token_id", _ID, nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("role", sa.SmallInteger(), nullable=False),
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("policy", _ID, nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", sa.BigInteger()),
        sa.Column("revoke_time", sa.BigInteger()),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("pepper_id", _ID, nullable=False),
        sa.PrimaryKeyConstraint("token_id", name="pk_service_tokens"),
        sa.UniqueConstraint("digest", name="uq_service_tokens_digest"),
    )
    op.create_index("ix_service_tokens_create_time_token_id", "service_tokens", ["create_time", "token_id"])
    op.create_table(
        "usage_hours",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("hour", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("operation", _SORTED, nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("records", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "key_id", "hour", "operation", name="pk_usage_hours"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "usage_records",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("record_id", _ID, nullable=False),
        sa.Column("content", sa.LargeBinary(32), nullable=False),
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("units", sa.BigInteger(), nullable=False),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("resource", sa.Text(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=False),
        sa.Column("latency", sa.BigInteger()),
        sa.Column("occur_time", sa.BigInteger(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("charge_units", sa.BigInteger()),
        sa.Column("refund_request_id", _ID, nullable=False),
        sa.PrimaryKeyConstraint("account_id", "record_id", name="pk_usage_records"),
    )
    op.create_table(
        "keys",
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("display_name", sa.Text(), nullable=False),
        sa.Column("environment", sa.SmallInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("create_time", sa.BigInteger(), nullable=False),
        sa.Column("expire_time", sa.BigInteger()),
        sa.Column("revoke_time", sa.BigInteger()),
        sa.Column("last_used_time", sa.BigInteger()),
        sa.Column("last_used_ip", sa.Text(), nullable=False),
        sa.Column("grants", sa.JSON(), nullable=False),
        sa.Column("api_groups", sa.JSON(), nullable=False),
        sa.Column("ip_rules", sa.JSON(), nullable=False),
        sa.Column("limits", sa.JSON(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_keys_account_id"),
        sa.PrimaryKeyConstraint("key_id", name="pk_keys"),
    )
    op.create_index("ix_keys_account_id_create_time_key_id", "keys", ["account_id", "create_time", "key_id"])
    op.create_table(
        "key_requests",
        sa.Column("account_id", _ID, nullable=False),
        sa.Column("request_id", _ID, nullable=False),
        sa.Column("key_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name="fk_key_requests_account_id"),
        sa.ForeignKeyConstraint(["key_id"], ["keys.key_id"], name="fk_key_requests_key_id"),
        sa.PrimaryKeyConstraint("account_id", "request_id", name="pk_key_requests"),
    )
    op.create_table(
        "secrets",
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("key_id", _ID, nullable=False),
        sa.Column("pepper_id", _ID, nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["keys.key_id"], name="fk_secrets_key_id"),
        sa.PrimaryKeyConstraint("digest", name="pk_secrets"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_secrets_key_id", "secrets", ["key_id"])
