"""The modules that the loop and the decoding call: the DiT and the VAE, by several hands."""
