"""Figures that the site's guards have, and the tests know."""

RATE = 20
CAP = 2
