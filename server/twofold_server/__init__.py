"""The serving process. It never imports torch or transformers."""

from importlib.metadata import version

VERSION = version("twofold-service")
