"""Trains checkpoints: an initial one with both heads, or an adaptation of one head. The only package that imports torch."""
