"""Static quantisation of ONNX graphs to 8 bits. The only user of `onnxruntime.quantization`.

Activations are uint8 and weights int8, one scale for each output channel. On a CPU ONNX Runtime's
fast convolutions are for this pair: ResNet-20 takes 0.47 of the float file's time with it, 1.28
with int8 activations and 0.99 with uint8 weights (`python -m benchmarks.int8 cifar10_resnet20`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization as ort
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer

from compressor.device.measure import Array, Settings, create_session
from compressor.errors import ExportError
from compressor.quiet import quiet

IMAGES = 128
"""Calibration inputs that are looked at, at most."""

# What ONNX Runtime computes in 8 bits on a CPU, or passes on as it is. Softmax and normalisations
# are not: a probability in steps of 1/255 loses more than they cost.
_OPERATORS = (
    "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gemm",
    "GlobalAveragePool", "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "Relu", "Reshape",
    "Resize", "Sigmoid", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
)  # fmt: skip
_PERCENTILE = 99.999


def quantise(model: bytes, batches: Iterable[Sequence[Array]], images: int = IMAGES) -> bytes:
    """The graph with 8-bit weights and activations, in QDQ form, under the same inputs and outputs.

    Ranges of activations are those that hold all but a hundred-thousandth of the values at either
    end. One batch is in memory at a time.

    Args:
        model: ONNX graph in single precision with a free batch size.
        batches: calibration inputs, each in the order of the graph's.
        images: inputs that are looked at, at most.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    with _quantising() as scratch:
        ready = _prepared(model, scratch)
        calibrator = ort.create_calibrator(
            ready,
            list(_OPERATORS),
            augmented_model_path=str(scratch / "observed.onnx"),
            calibrate_method=ort.CalibrationMethod.Percentile,
            extra_options={"percentile": _PERCENTILE},
        )
        for feed in _feeds(model, batches, images):
            calibrator.collect_data(_OneBatch(feed))
        return _quantised(ready, calibrator.compute_data())


def quantise_for_timing(model: bytes) -> bytes:
    """The graph in the same form with made-up ranges: as fast, and with senseless outputs.

    What a quantised graph computes in depends on its operators and widths alone.

    Raises:
        ExportError: the graph cannot be quantised.
    """
    with _quantising() as scratch:
        ready = _prepared(model, scratch)
        graph = load_model_with_shape_infer(ready).graph
        made_up = {
            value.name: (np.float32(0), np.float32(6))
            for value in (*graph.input, *graph.value_info, *graph.output)
            if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
        }
        ranges = ort.calibrate.TensorsData(ort.CalibrationMethod.MinMax, made_up)
        return _quantised(ready, ranges)


@contextmanager
def _quantising() -> Iterator[Path]:
    """A folder to work in; what the quantiser prints is kept away, what it raises is ours."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            with quiet():
                yield Path(scratch)
        except Exception as error:  # the quantiser's errors have no common base
            raise _refusal(error) from error


class _OneBatch(ort.CalibrationDataReader):  # type: ignore[misc]  # it ships no types
    """Gives one batch, once: the calibrator keeps whatever it is given until it is done."""

    def __init__(self, feed: Mapping[str, Array]) -> None:
        self._rest = [feed]

    def get_next(self) -> Mapping[str, Array] | None:
        return self._rest.pop() if self._rest else None


def _prepared(model: bytes, scratch: Path) -> Path:
    """The graph with BatchNorm folded and shapes inferred, which the quantiser needs, as a file."""
    plain, ready = scratch / "float.onnx", scratch / "ready.onnx"
    plain.write_bytes(model)
    ort.quant_pre_process(str(plain), str(ready), skip_symbolic_shape=True)
    return ready


def _feeds(
    model: bytes, batches: Iterable[Sequence[Array]], images: int
) -> Iterator[dict[str, Array]]:
    """Batches by the names of the graph's inputs, until there were enough images."""
    names = [port.name for port in create_session(model, Settings()).get_inputs()]
    for batch in batches:
        size = len(batch[0])
        cut = [array[:images] if len(array) == size else array for array in batch]
        yield dict(zip(names, cut, strict=True))
        images -= size
        if images <= 0:
            return


def _quantised(ready: Path, ranges: Any) -> bytes:
    quantizer = ort.QDQQuantizer(
        load_model_with_shape_infer(ready),
        per_channel=True,
        reduce_range=False,
        weight_qType=ort.QuantType.QInt8,
        activation_qType=ort.QuantType.QUInt8,
        tensors_range=ranges,
        nodes_to_quantize=[],
        nodes_to_exclude=[],
        extra_options={},
        op_types_to_quantize=list(_OPERATORS),
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()  # it appends what reads biases, and runtimes may be strict
    onnx.checker.check_model(quantizer.model.model)
    return bytes(quantizer.model.model.SerializeToString())


def _refusal(error: Exception) -> ExportError:
    lines = str(error).strip().splitlines() or [""]
    return ExportError(
        f"the network cannot be quantised: {type(error).__name__}: {lines[0]}; leave --int8 off"
    )
