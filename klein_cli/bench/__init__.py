"""How fast this machine makes pictures: beside diffusers, and beside the machine's own limit."""
