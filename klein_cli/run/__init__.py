"""A run: rows -> jobs -> batches -> saved pictures."""
