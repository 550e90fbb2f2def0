"""What people run: the `heptad` command and its domains' entries; no model code."""
