"""Examples: reading, splitting, aligning and batching."""
