"""The report of a job: what is known of it as one document, and that document as one page."""
