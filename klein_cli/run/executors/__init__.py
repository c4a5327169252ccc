"""Who draws for a run: this process, or others."""
