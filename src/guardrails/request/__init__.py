"""How a request flows."""
