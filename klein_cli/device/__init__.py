"""The machine: which device computes and how, its memory, and a quick start."""
