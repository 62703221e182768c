"""The database of jobs and aliases: connection, schema and migrations."""
