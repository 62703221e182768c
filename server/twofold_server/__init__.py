"""The serving process. It never imports torch or transformers."""
