"""Twofold: what a text is, what is in it, and how a model learns more of either without losing the other."""
