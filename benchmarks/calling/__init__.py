"""What serving benchmarks share: texts, callers that put load on a server, and the bare loop to compare with."""
