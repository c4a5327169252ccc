"""What of an edited image goes into the file of its result, besides what was painted."""
