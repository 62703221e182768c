"""Retention: the policy, and the deletion of expired data."""
