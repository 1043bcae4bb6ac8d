"""What the site and its tests both know."""

RATE = 20
CAP = 2

NOFILE = 4000
DATA = 8 << 30
"""Limits that a worker's set-up puts in force."""

START_SECONDS = 90
STOP_SECONDS = 15
"""How long a server may take to start, and how long it is left to stop by itself."""
