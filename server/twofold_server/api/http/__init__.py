"""The HTTP port: metrics, the list of jobs and their reports."""
