"""The serving process. It never imports torch or transformers."""

import os
from importlib.metadata import version

VERSION = version("twofold-service")

# gRPC's core would write to stderr, in a form of its own, whatever a peer says that hangs up. It reads this when it is
# first imported, which is after this; who looks for a fault sets another value.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
