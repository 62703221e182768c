"""The adaptation benchmark: scenarios, base checkpoints, methods, runs and tables."""
