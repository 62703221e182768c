"""The adaptation benchmark: scenarios, bases, rows, cells, table."""
