"""Words -> rows -> recipes. Imports no torch."""
