"""Other programs as competitors of the training benchmark."""
