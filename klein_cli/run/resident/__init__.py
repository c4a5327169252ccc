"""An engine that stays, from the side of those who use it: where it is, and whether it will do."""
