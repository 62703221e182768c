"""The job model, and the storage of job events."""
