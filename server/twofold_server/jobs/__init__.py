"""What a job is, and where its events are stored."""
