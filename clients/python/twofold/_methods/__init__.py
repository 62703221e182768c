"""The client's methods, each written once, without I/O."""
