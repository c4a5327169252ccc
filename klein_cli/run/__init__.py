"""A run: rows -> jobs -> batches -> saved images."""
