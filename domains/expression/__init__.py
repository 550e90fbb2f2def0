"""Facial expressions: ARBEx."""
