"""The parts of the fake server in twofold.testing."""
