"""The values that the client takes and returns: frozen dataclasses and enums, without protobuf."""
