"""The whole chain, from what was asked for to a run directory."""
