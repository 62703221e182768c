"""The gRPC services: each method reads a request, calls the domain and writes a response."""
