"""How long models take: the devices, what runs on them, and the statistics."""
