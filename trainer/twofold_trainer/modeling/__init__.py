"""The model: backbone, two heads, forks, cached features and freezing."""
