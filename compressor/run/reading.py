"""A network as the search sees it: proved search layers and exact cost tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from compressor.cost import SizeTable, layer_control, madds_table, params_table, touched_madds
from compressor.errors import AdapterError
from compressor.network.adapter import find_adapter
from compressor.network.counting import Count, count, evaluating, single
from compressor.network.data import Inputs
from compressor.network.verify import verify_space
from compressor.progress import Event, Progress, silent
from compressor.refit.consumers import only_sliced
from compressor.score.few import out_of_memory
from compressor.space import Frozen, SearchSpace


@dataclass(frozen=True)
class Reading:
    """What is known about a network before anything is searched.

    Attributes:
        space: search layers that were proved on this network, and what is frozen.
        count: multiply-adds and parameters of the original.
        madds: exact multiply-adds of any architecture.
        params: exact parameters of any architecture.
        sliced: modules that lose inputs but cannot be refitted, with the reason.
    """

    space: SearchSpace
    count: Count
    madds: SizeTable
    params: SizeTable
    sliced: tuple[Frozen, ...] = ()


def read_network(
    model: nn.Module,
    example: Inputs,
    adapter: str = "generic",
    progress: Progress = silent,
    *,
    drop_blocks: bool = False,
) -> Reading:
    """Reads a network into search layers and proves each of them.

    Args:
        model: the pretrained network; not touched.
        example: inputs `[N, …]` that it accepts.
        adapter: registered name or `package.module:Class`.
        progress: told after each step.
        drop_blocks: whether residual blocks may be left out as a whole.

    Raises:
        DataError: the model does not run on the example.
        UsageError: there is no such adapter, or it finds no blocks.
        AdapterError: memory runs out.
    """
    progress(Event("read", 0, 1, "tracing the network"))
    reader = find_adapter(adapter, drop_blocks=drop_blocks)
    with _telling_of_memory(model), evaluating(model):
        counted = count(model, example)  # says so where the network does not run
        described = reader.read(model, example)
        progress(Event("read", 1, 1, f"{len(described.layers)} search layers"))
        space = verify_space(model, example, described, progress)
    return Reading(
        space,
        counted,
        madds_table(space, counted.tensors, products=counted.products),
        params_table(space, counted.tensors),
        only_sliced(model, space, single(example)),
    )


@contextmanager
def _telling_of_memory(model: nn.Module) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        raise AdapterError(
            "search layers are proved on copies of the network, also in double precision, but "
            f"memory ran out (the weights take {size / 2**30:.1f} GiB, all copies may take "
            "eight times as much, besides activations); give a smaller example input, or more "
            "memory"
        ) from error


def require_layers(reading: Reading) -> None:
    """Raises `AdapterError`, with the reasons, if there is nothing to choose."""
    if not reading.space.layers:
        reasons = "; ".join(f"{f.name}: {f.reason}" for f in reading.space.frozen[:5])
        raise AdapterError(
            "compressing needs at least one search layer, but every part of this network is "
            f"kept as it is ({reasons or 'it has no convolution or linear layer'}); "
            "`compressor inspect` lists all of them"
        )


@dataclass(frozen=True)
class LayerInfo:
    """A search layer for people.

    Attributes:
        name: its name.
        modules: paths of the modules that change with it.
        choices: the options, cheapest first.
        madds: multiply-adds of the weights that it can shrink.
        removable: multiply-adds that its smallest choice takes off, all else original.
    """

    name: str
    modules: tuple[str, ...]
    choices: tuple[str, ...]
    madds: int
    removable: int


@dataclass(frozen=True)
class Inspection:
    """What `compressor inspect` shows.

    Attributes:
        layers: the search layers in forward order.
        frozen: parts that are kept as they are, with the reason.
        sliced: modules that lose inputs but cannot be refitted, with the reason.
        madds, params: of the original.
        least_madds: of the smallest architecture.
        share: part of the MAdds, 0..1, in weights that the search can shrink.
        uncounted: operators that are no multiply-adds by the definition, with calls.
        thop_madds: thop's figure, a second opinion; None where thop fails.
        thop_note: why thop's figure is missing, or how to read it.
    """

    layers: tuple[LayerInfo, ...]
    frozen: tuple[Frozen, ...]
    sliced: tuple[Frozen, ...]
    madds: int
    params: int
    least_madds: int
    share: float
    uncounted: dict[str, int]
    thop_madds: float | None
    thop_note: str

    def to_json(self) -> dict[str, object]:
        """Plain values."""
        return {
            "madds": self.madds,
            "params": self.params,
            "least_madds": self.least_madds,
            "share": self.share,
            "layers": [
                {
                    "name": x.name,
                    "modules": list(x.modules),
                    "choices": list(x.choices),
                    "madds": x.madds,
                    "removable_madds": x.removable,
                }
                for x in self.layers
            ],
            "frozen": [{"name": f.name, "reason": f.reason} for f in self.frozen],
            "sliced": [{"name": f.name, "reason": f.reason} for f in self.sliced],
            "uncounted": self.uncounted,
            "thop": {"madds": self.thop_madds, "note": self.thop_note},
        }


def describe(reading: Reading, second_opinion: tuple[float | None, str]) -> Inspection:
    """Puts a reading into words and numbers for people."""
    space, terms = reading.space, reading.count.terms
    removable = layer_control(reading.madds, space)
    layers = tuple(
        LayerInfo(
            layer.name,
            layer.modules,
            tuple(str(choice) for choice in layer.choices),
            touched_madds([layer], terms),
            int(gone),
        )
        for layer, gone in zip(space.layers, removable, strict=True)
    )
    madds, note = second_opinion
    return Inspection(
        layers=layers,
        frozen=space.frozen,
        sliced=reading.sliced,
        madds=reading.count.madds,
        params=reading.count.params,
        least_madds=reading.madds(space.smallest),
        share=touched_madds(space.layers, terms) / max(reading.count.madds, 1),
        uncounted=dict(reading.count.uncounted),
        thop_madds=madds,
        thop_note=note,
    )
