"""Latency as a cost: predicted from the parts of a network, promised by measurement."""
