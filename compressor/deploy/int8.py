"""The quantised file of a network: made, compared with the float file, and scored."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from compressor.deploy.export import export_onnx
from compressor.deploy.quantise import IMAGES, quantise, quantise_for_timing
from compressor.device.measure import Array, Session, Settings, create_session, run_session
from compressor.errors import CheckError, DataError
from compressor.files import QUANTISED
from compressor.network.counting import evaluating, forward
from compressor.network.data import Batches, Inputs, split
from compressor.score.evaluate import Score, checked_score
from compressor.score.judge import Judge

INT8 = QUANTISED
FLOOR = 0.8
"""Least share of the variance of the float file's outputs that the int8 file's must explain.

ResNet-20 has 0.999 and keeps its accuracy. With ranges that cut off what matters it has 0.87 and
loses five points, or 0.75 and loses twelve (`python -m benchmarks.int8 cifar10_resnet20`). At 0.8
the error is nearly half as large as the outputs' spread: the file no longer computes the network.
"""
_FILE = "an ONNX file as a module (it can be called, and has no layers to look at)"
_REMEDY = "give more calibration data, closer to what the network will see, or leave --int8 off"


@dataclass(frozen=True)
class Int8:
    """A quantised network.

    Attributes:
        data: the ONNX file's content.
        explained: share of the variance of the float file's outputs that its outputs explain, of
            the output where it is least.
        score: of the file in ONNX Runtime; None where nothing judged it.
    """

    data: bytes
    explained: float
    score: float | None = None


class RuntimeNetwork(nn.Module):
    """An ONNX file as a module, so that whatever scores a network can score the file."""

    def __init__(self, session: Session, like: nn.Module, example: Inputs) -> None:
        """Keeps the session.

        Args:
            session: of the file.
            like: the network that the file was exported from; says how its outputs are nested.
            example: inputs that it accepts.
        """
        super().__init__()
        self._session = session
        with evaluating(like):
            self._leaves, self._spec = _structure(forward(like, example))
        # Scores that ask the first parameter where the network lives get an answer.
        self.place = nn.Parameter(torch.zeros(()), requires_grad=False)

    def forward(self, *inputs: Tensor) -> Any:
        """The file's outputs, nested like the network's, on the device of the first input."""
        found = run_session(self._session, [t.detach().cpu().numpy() for t in inputs])
        tensors = iter([torch.from_numpy(np.array(a)).to(inputs[0].device) for a in found])
        leaves = [next(tensors) if isinstance(x, Tensor) else x for x in self._leaves]
        return tree_unflatten(leaves, self._spec)


def quantised_network(
    source: Path, calibration: Batches, settings: Settings, images: int = IMAGES
) -> Int8:
    """Quantises an exported file and compares the result with it.

    Args:
        source: the float file, with a free batch size.
        calibration: batches for the ranges of activations, and for the comparison.
        settings: how the files run.
        images: calibration inputs that are looked at, at most.

    Raises:
        DataError: there is no calibration data.
        ExportError: the network cannot be quantised.
        CheckError: the two files disagree; see `FLOOR`.
    """
    batches = list(_first(calibration, images))
    if not batches:
        raise DataError(
            "int8 needs calibration data for the ranges of activations, but there is none; give "
            "calibration batches"
        )
    data = quantise(source.read_bytes(), batches, images)
    return Int8(data, _checked(source, data, batches, settings))


def score_of_file(
    score: Score, network: Int8, like: nn.Module, example: Inputs, settings: Settings
) -> float:
    """The score of a quantised network, run by ONNX Runtime.

    Raises:
        DataError: the score does not work on a module that is an ONNX file.
    """
    module = RuntimeNetwork(create_session(network.data, settings), like, example)
    return checked_score(score, module, _FILE)


def require_quantisable(
    model: nn.Module, example: Inputs, score: Score, settings: Settings
) -> None:
    """Refuses before a search what would fail after it: the graph's form, or the score's.

    Raises:
        ExportError: the network cannot be exported or quantised.
        MeasureError: ONNX Runtime cannot run the quantised graph.
        DataError: the score does not work on a module that is an ONNX file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = export_onnx(model, example, Path(scratch) / "original.onnx").path
        create_session(quantise_for_timing(path.read_bytes()), settings)
        if not isinstance(score, Judge):  # which only calls the network
            session = create_session(path, settings)
            checked_score(score, RuntimeNetwork(session, model, example), _FILE)


def explained(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """1 for equal outputs, 0 for outputs no better than their mean; less than 0 for worse."""
    a, b = expected.astype(np.float64), found.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return float("nan")
    # Outputs that do not vary are held against their size, not against nothing.
    spread = max(float(np.square(a - a.mean()).mean()), 1e-6 * float(np.square(a).mean()))
    error = float(np.square(a - b).mean())
    return 1.0 - (error / spread if spread else float(error > 0))


def _checked(source: Path, data: bytes, batches: list[list[Array]], settings: Settings) -> float:
    """The least share explained of any output, at or above the floor."""
    pairs: list[list[tuple[Array, Array]]] = []
    sessions = create_session(source, settings), create_session(data, settings)
    for batch in batches:
        ours, theirs = (run_session(session, batch) for session in sessions)
        if [a.shape for a in ours] != [a.shape for a in theirs]:
            raise CheckError(
                "the int8 file must give outputs of the float file's shapes, but gives "
                f"{[a.shape for a in theirs]} where that gives {[a.shape for a in ours]}; leave "
                "--int8 off"
            )
        pairs.append(list(zip(ours, theirs, strict=True)))
    shares = [
        explained(*(np.concatenate([p[side].ravel() for p in output]) for side in (0, 1)))
        for output in zip(*pairs, strict=True)
    ]
    least = min(shares, key=lambda share: -np.inf if np.isnan(share) else share, default=1.0)
    # Written so that NaN fails as well.
    if not least >= FLOOR:
        raise CheckError(
            f"the int8 file must explain at least {FLOOR:.0%} of the variance of the float file's "
            f"outputs, but explains {least:.1%}; {_REMEDY}"
        )
    return least


def _first(calibration: Batches, images: int) -> Iterator[list[Array]]:
    """Inputs of the first batches, as many as are looked at."""
    for batch in calibration:
        inputs = [t.detach().cpu().numpy() for t in split(batch)[0]]
        yield inputs
        images -= len(inputs[0])
        if images <= 0:
            return


def _structure(output: Any) -> tuple[list[Any], TreeSpec]:
    leaves, spec = tree_flatten(output)
    return leaves, spec
