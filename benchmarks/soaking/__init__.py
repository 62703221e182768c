"""What a soak does to a server, and what it expects of it."""
