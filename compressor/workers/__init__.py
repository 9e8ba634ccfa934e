"""Candidates scored by several processes, on one machine or on many, with Ray."""
