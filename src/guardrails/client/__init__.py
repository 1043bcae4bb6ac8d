"""Which client sent a request."""
