"""Latency as a cost: each candidate is cut from one exported graph and timed. Knows no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeAlias

from compressor.deploy.slicing import Graph
from compressor.device.job import Device
from compressor.device.local import LocalDevice
from compressor.device.measure import Settings, measure
from compressor.device.timing import Latency
from compressor.errors import ExportError, MeasureError
from compressor.space import Architecture, SearchSpace

Recall: TypeAlias = Callable[[Architecture], float | None]
Remember: TypeAlias = Callable[[Architecture, float], None]
Prepare: TypeAlias = Callable[[bytes], bytes]
Build: TypeAlias = Callable[[Architecture], bytes]
Measurer: TypeAlias = Callable[[Mapping[str, bytes], Settings], Mapping[str, Latency]]


class LatencyCost:
    """Milliseconds of one ONNX Runtime call; satisfies `compressor.cost.CostModel`.

    A candidate is timed in turns with the original, and costs its share of the original's time
    times one reference figure for the original. So all costs of a search are comparable, even
    where the machine became slower or faster in between.

    Attributes:
        measurer: what times models.
    """

    unit = "latency"
    monotone = False  # fewer channels can be slower: kernels of the runtime work in blocks

    def __init__(  # noqa: PLR0913  (all but three have defaults, and are given by name)
        self,
        graph: Graph,
        space: SearchSpace,
        settings: Settings,
        *,
        batch: int = 1,
        recall: Recall | None = None,
        remember: Remember | None = None,
        fallback: Build | None = None,
        prepare: Prepare | None = None,
        whole: Callable[[Architecture], float] | None = None,
        measurer: Measurer | None = None,
    ) -> None:
        """Keeps what is needed; nothing is measured yet.

        Args:
            graph: the exported base network.
            space: how it may be cut.
            settings: threads, provider and time for one measurement.
            batch: batch size of a call.
            recall: an earlier figure for an architecture, or None.
            remember: told each new figure.
            fallback: builds the ONNX model of an architecture in another way; used where the
                graph cannot be sliced or the slice does not run.
            prepare: makes of a candidate's graph the one that is timed, for example quantises it.
            whole: what the original costs without that; needed where there is `prepare`.
            measurer: what times models, `measurer_on` this machine unless given.
        """
        self._graph, self._space, self._settings = graph, space, settings
        self._recall, self._remember = recall, remember
        self._fallback = fallback
        self._prepare, self._whole = prepare, whole
        self.measurer = measurer or measurer_on(LocalDevice(), batch=batch)
        self._known: dict[Architecture, float] = {}
        self._base = graph.slice(space, space.original)

    def __call__(self, architecture: Architecture) -> float:
        """Milliseconds of one call.

        Raises:
            ArchitectureError: the architecture is not of this space.
            ExportError: it cannot be cut from the graph, and there is no fallback.
            MeasureError: ONNX Runtime cannot run it, and there is no fallback.
            DeviceError: the device fails; nothing is remembered.
        """
        architecture = self._space.canonical(architecture)  # one network is measured once
        found = self._known.get(architecture)
        if found is None and self._recall is not None:
            found = self._recall(architecture)
        if found is None:
            found = self._measured(architecture, self._settings)
            if self._remember is not None:
                self._remember(architecture, found)
        self._known[architecture] = found
        return found

    def reference(self) -> float:
        """Milliseconds of the original as it came: what shares are of."""
        return (self._whole or self)(self._space.original)

    def measured(self, architecture: Architecture, settings: Settings) -> Latency:
        """The network, measured anew with other settings; nothing is remembered.

        All milliseconds are shares of the original's reference figure, as costs are.
        """
        found = self._timed(architecture, settings)
        ms = self.reference()
        return replace(
            found, median_ms=found.ratio * ms, low_ms=found.ratio_low * ms,
            high_ms=found.ratio_high * ms,
        )  # fmt: skip

    def _measured(self, architecture: Architecture, settings: Settings) -> float:
        if architecture == self._space.original and self._prepare is None:
            return self.measurer({"original": self._base}, settings)["original"].median_ms
        return self._timed(architecture, settings).ratio * self.reference()

    def _timed(self, architecture: Architecture, settings: Settings) -> Latency:
        """The network in turns with the original."""
        try:
            return self._beside(self._graph.slice(self._space, architecture), settings)
        except (ExportError, MeasureError):
            if self._fallback is None:
                raise
            return self._beside(self._fallback(architecture), settings)

    def _beside(self, candidate: bytes, settings: Settings) -> Latency:
        if self._prepare is not None:
            candidate = self._prepare(candidate)
        models = {"original": self._base, "candidate": candidate}
        return self.measurer(models, settings)["candidate"]


def measurer_on(device: Device, *, batch: int = 1) -> Measurer:
    """What times models on a device."""
    return partial(_measure, batch=batch, device=device)


def _measure(
    models: Mapping[str, bytes], settings: Settings, *, batch: int, device: Device
) -> Mapping[str, Latency]:
    return measure(models, settings, batch=batch, device=device)
