"""The services: validate, delegate, answer. No logic of their own."""
