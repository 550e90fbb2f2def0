"""Slides -> places of their tissue patches."""
