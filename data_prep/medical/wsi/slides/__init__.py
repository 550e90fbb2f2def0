"""Reading of slides: formats, resolution, identity."""
