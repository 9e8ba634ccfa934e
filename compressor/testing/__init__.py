"""Checks that an adapter's author runs against their own networks."""
