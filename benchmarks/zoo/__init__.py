"""What the adapter makes of other people's networks, one process for each."""
