"""Examples: read, split, align and batch them."""
