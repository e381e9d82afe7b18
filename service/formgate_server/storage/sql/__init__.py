"""The truth in a relational database: SQLAlchemy Core over SQLite (PostgreSQL: the same SQL, by a later issue)."""
