"""The serving process. It never imports torch or transformers."""

import os
from importlib.metadata import version

VERSION = version("twofold-service")

# gRPC's core logs misbehaving peers to stderr in its own format. It reads this variable when it is first imported,
# which happens after this line; set another value to debug.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
