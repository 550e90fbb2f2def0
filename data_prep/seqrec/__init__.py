"""Interaction logs -> one chronological sequence per user, for sequential recommendation."""
