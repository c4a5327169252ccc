"""klein: words into pictures at a shell, with FLUX.2 [klein]."""

__version__ = "0.1.0"
