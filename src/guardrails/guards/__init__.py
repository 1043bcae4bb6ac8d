"""The guards: what a guard is, and one file for each."""
