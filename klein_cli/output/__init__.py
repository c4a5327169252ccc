"""Where images go: their names, their files and what the files say about them."""
