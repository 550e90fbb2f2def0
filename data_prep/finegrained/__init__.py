"""Fine-grained classes and re-identification: raw pictures -> prepared directories of "classes" or "identities"."""
