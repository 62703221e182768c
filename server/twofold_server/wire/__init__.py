"""Protobuf to domain and back. Only this package and the servicers know protobuf types."""
