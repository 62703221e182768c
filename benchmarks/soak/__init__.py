"""A soak test: minutes of mixed valid and invalid load, swaps and jobs against one server."""
