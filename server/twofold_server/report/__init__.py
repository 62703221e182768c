"""The report of a finished job: one document, and one HTML page rendered from it."""
