"""What arrives on a port: the gRPC interceptor, health, reflection, servicers, message codecs and HTTP pages."""
