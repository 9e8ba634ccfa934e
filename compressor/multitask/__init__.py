"""Networks of several tasks compressed to one shared encoder architecture."""
