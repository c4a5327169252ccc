"""Image files that a user gives -> checked RGB pixels, references and masks: no torch."""
