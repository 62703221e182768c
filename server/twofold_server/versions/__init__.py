"""Which checkpoint is live: loading, shadow tests, promotion, monitoring, rollback and alias history."""
