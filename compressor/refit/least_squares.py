"""Ridge least squares on moments: refitting a weight to fewer inputs.

A weight W `[O, D]` makes y = W x. With only the inputs S left, the best weight is
W H[:, S] H[S, S]⁻¹, where H is the system: the covariance of x if a constant can be added to y
(a bias, or the mean of a BatchNorm), the second moment if not, and a ridge on its diagonal. All
of this is for each group of a grouped convolution on its own: leading dimension G.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-3  # share of the mean variance that is added to every input's
_ROUNDING = 1e-12  # of the mean square: how exact sums in float64 are
_LEAST = 1e-15  # inputs that are zero everywhere stay solvable


def ridged(second: Tensor, mean: Tensor, ridge: float = RIDGE) -> Tensor:
    """Adds the ridge to a covariance or second moment `[G, D, D]`, in place, and returns it.

    The result is positive definite, whatever never varies among the inputs.

    Args:
        second: as `Moments.second` gives it.
        mean: of the inputs, `[G, D]`; says how exact the moments can be.
        ridge: share of the mean variance that is added.
    """
    diagonal = second.diagonal(dim1=1, dim2=2)
    varies = diagonal.mean(1, keepdim=True)
    square = mean.square().mean(1, keepdim=True)
    diagonal.add_((ridge * varies + _ROUNDING * square).clamp_min(_LEAST))
    return second


def restricted(ridged: Tensor, weight: Tensor, kept: Tensor) -> Tensor:
    """The best weight `[G, O / G, |S|]` on the kept inputs.

    Args:
        ridged: the system `[G, D, D]`, float64.
        weight: original weight `[G, O / G, D]`.
        kept: indices S, ascending, the same in every group.
    """
    rows = ridged[:, kept]
    factor = torch.linalg.cholesky(rows[:, :, kept])
    return torch.cholesky_solve(rows @ weight.double().mT, factor).mT
