"""Planning: a validated job becomes a plan of stages with estimates."""
