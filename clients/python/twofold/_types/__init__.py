"""The values that the client accepts and returns: frozen dataclasses and enums without protobuf."""
