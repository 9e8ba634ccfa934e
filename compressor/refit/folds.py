"""Ridge least squares whose ridge is chosen by cross-validation over images.

How far a refit may move a weight depends on how many images there are for so many inputs, and on
how much patches of one image have in common, which their number does not tell: a classifier of
1,280 inputs answers 500 images as it likes, and every other image wrongly. So the images are
dealt into folds, and a ridge is judged by the images that it was not fitted to.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compressor.refit.least_squares import RIDGE, ridged
from compressor.refit.moments import Moments, merged

FOLDS = 4
_RIDGES = tuple(RIDGE * 10**power for power in range(7))
_FIRST = 2  # of them, to be looked at; also where there are no folds to judge by
_AGAIN = 1  # of them, for targets that were set anew


class Folds:
    """Moments of patches and their targets, with the images dealt into folds.

    Attributes:
        parts: moments of the folds that have images.
        chosen: the ridge of the last solution, as an index.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, folds: int = FOLDS) -> None:
        """Nothing observed yet.

        Args:
            groups: G, as everywhere in `moments`.
            inputs: of a group.
            outputs: of a group.
            folds: how many; 1 takes one ridge for granted.
        """
        self.parts: list[Moments] = [Moments(groups, inputs, outputs)]
        self.chosen = _FIRST
        self._folds = folds
        self._images = 0

    def observe(
        self, module: nn.Module, x: Tensor, y: Tensor, step: int = 1, weights: Tensor | None = None
    ) -> None:
        """Adds a batch, as `Moments.observe` does; image by image to the next fold."""
        first, self._images = self._images % self._folds, self._images + len(x)
        for fold in range(self._folds):
            mine = slice((fold - first) % self._folds, None, self._folds)
            if not len(x[mine]):
                continue
            here = None if weights is None else weights.reshape(len(x), -1)[mine].flatten()
            if fold == len(self.parts):
                self.parts.append(self.parts[0].emptied())
            self.parts[fold].observe(module, x[mine], y[mine], step, here)

    def retargeted(self) -> Folds:
        """The same patches without targets, as `Moments.retargeted`, and a small ridge for them.

        Some of the targets that follow are what the weight answers as it is, so that images left
        out, too, would speak for leaving it there.
        """
        again = Folds(0, 0, 0, 1)
        again.parts, again.chosen = [merged(self.parts).retargeted()], _AGAIN
        return again

    def solved(self, start: Tensor, *, constant: bool) -> tuple[Tensor, Tensor]:
        """The best weight and constant for all patches, no further from `start` than pays.

        Args:
            start: weight `[G, O / G, D]` that the ridge draws towards.
            constant: whether a constant may be added; otherwise it is zero.

        Returns:
            Weight `[G, O / G, D]` and constant `[G, O / G]`.
        """
        if len(self.parts) > 1:
            self.chosen = self.best(start, constant=constant)
        return _solved(merged(self.parts), start, _RIDGES[self.chosen], constant)

    def best(self, start: Tensor, *, constant: bool) -> int:
        """The ridge with the least error on images left out, looked for from the last one on."""
        others = [merged([o for o in self.parts if o is not part]) for part in self.parts]
        known: dict[int, float] = {}

        def error(place: int) -> float:
            if place not in known:
                known[place] = sum(
                    part.error(*_solved(other, start, _RIDGES[place], constant))
                    for part, other in zip(self.parts, others, strict=True)
                )
            return known[place]

        here = self.chosen
        while True:
            near = range(max(0, here - 1), min(len(_RIDGES), here + 2))
            best = min(near, key=error)
            if error(best) >= error(here):
                return here
            here = best


def _solved(moments: Moments, start: Tensor, ridge: float, constant: bool) -> tuple[Tensor, Tensor]:
    second = moments.second(centred=constant)
    system = ridged(second.clone(), moments.mean, ridge)
    wanted = moments.cross(centred=constant) + (system - second) @ start.double().mT
    weight = torch.cholesky_solve(wanted, torch.linalg.cholesky(system)).mT
    shift = moments.target - (weight @ moments.mean[:, :, None]).flatten(1)
    return weight, shift if constant else torch.zeros_like(shift)
