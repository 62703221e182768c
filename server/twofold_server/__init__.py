"""The serving process. It never imports torch or transformers."""

import os
from importlib.metadata import version

VERSION = version("twofold-service")

# gRPC's core would write to stderr, in a form of its own, what peers say that hang up or break rules. It reads this when it is
# first imported, which is after this; who looks for a fault sets another value.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
