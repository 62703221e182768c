"""Stages of training: the loop, losses, optimisation and resume snapshots."""
