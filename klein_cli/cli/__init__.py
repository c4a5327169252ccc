"""The face: one file a command. Nothing here imports torch until the work starts."""
