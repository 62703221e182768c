"""TLS, bearer tokens, scopes and rate limits."""
