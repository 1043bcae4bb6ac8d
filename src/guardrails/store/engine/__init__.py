"""The engine of the shared store: what the verbs do to its memory, under its lock."""
