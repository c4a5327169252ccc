"""A model's files: found, fetched, judged, fingerprinted, and read onto the device."""
