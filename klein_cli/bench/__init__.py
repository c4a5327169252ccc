"""How fast this machine makes images: beside diffusers, and beside the machine's own limit."""
