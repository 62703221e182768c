"""The bodies of the client methods, each written once and without I/O."""
