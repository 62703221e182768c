"""What the serving benchmarks share: checkpoints, texts, a load generator, and a bare loop to compare with."""
