"""The Alembic environment of the database schema."""
