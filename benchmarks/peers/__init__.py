"""What the comparison with other model servers consists of: a folder for each, and what they share."""
