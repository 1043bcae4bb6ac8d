"""Guarding the worker itself."""
