"""From texts to predictions: queue, batch, forward pass and decoding."""
