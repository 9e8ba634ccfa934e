"""How good a candidate is: scores, probes, and fine-tuning."""
