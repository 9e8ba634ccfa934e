"""Names that a user may give, for whoever must know them without torch. Knows no torch."""

SCORES = ("top1", "loss", "agreement")
"""What judges networks; `compressor.score.judge` says how."""
KEEP = ("best", "last")
"""Which epoch of fine-tuning is kept."""
RANKING_NAMES = ("reconstruction", "magnitude", "activation", "taylor", "bn_scale")
"""Which channels to keep first; `compressor.refit.ranking` says how."""
TRANSFERS = ("none", "matching", "features")
"""What passes from one task's encoder to the next; `compressor.multitask.rounds` says how."""
