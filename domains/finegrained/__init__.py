"""Fine-grained classification and object re-identification: DCAL on any plain vision transformer."""
