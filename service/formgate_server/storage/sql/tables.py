"""The tables. Times are microseconds since the Unix epoch; enums are stored by their numbers in ``core.model``.

A change here needs a migration in ``migrations/versions``; a test compares the two.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

# Explicit names, so that a later migration can name what it changes on any database.
metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# Ids are compared by code point everywhere: a listing's order may not depend on a database's locale.
_Id = String(64).with_variant(String(64, collation="C"), "postgresql")
# So is what else is in an index: a new version of the system's locales would leave that wrongly sorted.
_Sorted = Text().with_variant(Text(collation="C"), "postgresql")
_Digest = LargeBinary(32)

accounts = Table(
    "accounts",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("policy", _Id, nullable=False),
    Column("plan", _Id, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("time_zone", Text, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Index(None, "create_time", "account_id"),
)

# Every new epoch, for the processes that follow (docs/adr/0010). `time` is the database's own clock.
changes = Table(
    "changes",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("epoch", BigInteger, primary_key=True, autoincrement=False),
    Column("time", BigInteger, nullable=False),
    Index(None, "time"),
)

# One row: the oldest revision of which a server may use this database (migrations/versions/v0004_compatibility.py).
compatibility = Table("compatibility", metadata, Column("oldest", String(32), primary_key=True))

keys = Table(
    "keys",
    metadata,
    Column("key_id", _Id, primary_key=True),
    Column("account_id", _Id, ForeignKey("accounts.account_id"), nullable=False),
    Column("display_name", Text, nullable=False),
    Column("environment", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("hint", Text, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger),
    Column("revoke_time", BigInteger),
    Column("last_used_time", BigInteger),
    Column("last_used_ip", Text, nullable=False),
    Column("grants", JSON, nullable=False),
    Column("api_groups", JSON, nullable=False),
    Column("ip_rules", JSON, nullable=False),
    Column("limits", JSON, nullable=False),
    Column("metadata", JSON, nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("delete_time", BigInteger),
    Index(None, "account_id", "create_time", "key_id"),
)

members = Table(
    "members",
    metadata,
    Column("account_id", _Id, ForeignKey("accounts.account_id"), primary_key=True),
    Column("member_id", _Id, primary_key=True),
    Column("role", SmallInteger, nullable=False),
    Column("permissions", JSON, nullable=False),
    Column("level", SmallInteger, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("update_time", BigInteger, nullable=False),
    Index(None, "account_id", "create_time", "member_id"),
)

# Apart from the keys: a key that rotates has several digests for a while, under peppers of their own. Its newest secret
# is the one without `expire_time`; none but that is kept `sealed`.
secrets = Table(
    "secrets",
    metadata,
    Column("digest", _Digest, primary_key=True),
    Column("key_id", _Id, ForeignKey("keys.key_id"), nullable=False, index=True),
    Column("pepper_id", _Id, nullable=False),
    Column("expire_time", BigInteger),
    Column("sealed", LargeBinary),
    Column("sealing_key_id", _Id),
    sqlite_with_rowid=False,  # one search a check, not two
)

# Which CreateKey call made a key.
key_requests = Table(
    "key_requests",
    metadata,
    Column("account_id", _Id, ForeignKey("accounts.account_id"), primary_key=True),
    Column("request_id", _Id, primary_key=True),
    Column("key_id", _Id, ForeignKey("keys.key_id"), nullable=False),
)

# account_id and policy empty: bound to none.
service_tokens = Table(
    "service_tokens",
    metadata,
    Column("token_id", _Id, primary_key=True),
    Column("display_name", Text, nullable=False),
    Column("role", SmallInteger, nullable=False),
    Column("account_id", _Id, nullable=False),
    Column("policy", _Id, nullable=False),
    Column("create_time", BigInteger, nullable=False),
    Column("expire_time", BigInteger),
    Column("revoke_time", BigInteger),
    Column("digest", _Digest, nullable=False, unique=True),
    Column("pepper_id", _Id, nullable=False),
    Index(None, "create_time", "token_id"),
)

# `sequence` counts an account's rows from 1 without gaps; changes that concern no account have account_id ''. Rows
# without `mac` are older than revision 0002, and nothing shows if they were altered.
audit_events = Table(
    "audit_events",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("create_time", BigInteger, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", _Sorted, nullable=False),
    Column("token_id", _Id, nullable=False),
    Column("actor", Text, nullable=False),
    Column("actor_ip", Text, nullable=False),
    Column("before", JSON(none_as_null=True)),
    Column("after", JSON(none_as_null=True)),
    Column("note", Text, nullable=False),
    Column("mac", _Digest),
    Column("mac_key_id", _Id),
    Index(None, "account_id", "target", "sequence"),
)

# The last row of each account's audit trail. Whoever adds the next one locks it here, on any database.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("sequence", BigInteger, nullable=False),
    Column("mac", _Digest),
)

# As sent, with the digest of the content; `occur_time` is when it counts.
usage_records = Table(
    "usage_records",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("record_id", _Id, primary_key=True),
    Column("content", _Digest, nullable=False),
    Column("key_id", _Id, nullable=False),
    Column("units", BigInteger, nullable=False),
    Column("operation", Text, nullable=False),
    Column("resource", Text, nullable=False),
    Column("status_code", Integer, nullable=False),
    Column("latency", BigInteger),
    Column("occur_time", BigInteger, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("charge_units", BigInteger),
    Column("refund_request_id", _Id, nullable=False),
    Index(None, "occur_time"),
)

# What usage records want charged or given back, until that is done.
usage_outbox = Table(
    "usage_outbox",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("record_id", _Id, primary_key=True),
    Column("key_id", _Id, nullable=False),
    Column("charge_units", BigInteger, nullable=False),
    Column("refund_request_id", _Id, nullable=False),
    Column("time", BigInteger, nullable=False),
    Index(None, "time"),
)

# Sums by key and operation of the hour (UTC) that begins at `hour`.
usage_hours = Table(
    "usage_hours",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("key_id", _Id, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("operation", _Sorted, primary_key=True),
    Column("units", BigInteger, nullable=False),
    Column("records", BigInteger, nullable=False),
    Index(None, "account_id", "hour"),
    Index(None, "hour"),
    sqlite_with_rowid=False,
)

# The same by a tag's values: the first so many of an hour, and `__other__`, whose row is there before any other is.
usage_tag_hours = Table(
    "usage_tag_hours",
    metadata,
    Column("account_id", _Id, primary_key=True),
    Column("tag", _Sorted, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("value", _Sorted, primary_key=True),
    Column("units", BigInteger, nullable=False),
    Column("records", BigInteger, nullable=False),
    Index(None, "hour"),
    sqlite_with_rowid=False,
)

# Counters as they stood, and how many units more may have been charged since; `serial` orders the marks of one counter
# where several processes raise it. From `expire_time` on nothing of it counts any more, and the row may go.
reservations = Table(
    "reservations",
    metadata,
    Column("counter_id", _Sorted, primary_key=True),
    Column("state", JSON, nullable=False),
    Column("ahead", BigInteger, nullable=False),
    Column("serial", BigInteger, nullable=False, server_default="0"),
    Column("expire_time", BigInteger),
    Index(None, "expire_time"),
    sqlite_with_rowid=False,
)

# What this database belongs to: the public ids of the peppers that its digests are made with.
fingerprints = Table(
    "fingerprints",
    metadata,
    Column("name", _Sorted, primary_key=True),
    Column("value", _Sorted, primary_key=True),
)
