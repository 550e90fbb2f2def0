"""Click logs in, per-field ids and numbers out."""
