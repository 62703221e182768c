"""What server and trainer tell each other: the job, its events and its findings."""
