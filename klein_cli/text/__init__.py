"""Words: prompt -> token ids -> the text embeddings that the DiT reads."""
