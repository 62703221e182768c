"""What may be deleted, and what deletes it."""
