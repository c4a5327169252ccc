"""What a terminal shows: reports, progress, previews, and standard streams."""
