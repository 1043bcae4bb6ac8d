"""The inside of the shared store: what a decision does to its memory."""
