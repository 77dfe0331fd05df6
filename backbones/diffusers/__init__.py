"""Models in diffusers folders."""
