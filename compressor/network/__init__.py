"""PyTorch networks: read, traced, counted, cut, and proved."""
