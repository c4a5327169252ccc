"""Noise -> latents: schedule, noise, positions and the Euler loop."""
