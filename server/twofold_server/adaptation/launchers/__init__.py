"""How a job gets a trainer process."""
