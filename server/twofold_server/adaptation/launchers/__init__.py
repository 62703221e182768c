"""Launchers of trainer processes."""
