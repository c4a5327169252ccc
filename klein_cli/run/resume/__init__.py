"""What an output folder holds of earlier runs, and what is written down for later ones."""
