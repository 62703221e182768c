"""The live checkpoint: loading, shadow tests, promotion, monitoring, rollback and alias history."""
