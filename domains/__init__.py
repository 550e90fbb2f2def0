"""What is learned: networks and their training, in plain PyTorch and Lightning."""
