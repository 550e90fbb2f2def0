"""Whole-slide images: reading, tissue, patches, features, bags."""
