"""From a job to a checked plan of stages with estimates."""
