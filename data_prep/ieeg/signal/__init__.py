"""The signal itself: filters, references, what channels look like, and files of prepared signal."""
