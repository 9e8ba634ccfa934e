"""Broken and hostile inputs for everything that reads what others may have written."""
