"""From texts to predictions: queueing, batching, the forward pass and decoding."""
