"""Smaller networks from a trained one without training: units ranked, weights solved again."""
