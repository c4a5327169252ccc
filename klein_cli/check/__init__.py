"""This machine against the truth: our engine beside the official pipeline."""
