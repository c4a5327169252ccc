"""`klein serve`: an engine that stays. A front without torch, and a process a GPU that draws."""
