"""What an adapter got wrong is frozen with its reason, and what is right stays."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from adapters.generic import GenericAdapter
from compressor.coupling import Coupling, IndexMap, Role, Run
from compressor.errors import DataError
from compressor.network.structure import materialise
from compressor.network.verify import verify_space
from compressor.progress import Event
from compressor.space import ChannelGroup, Choice, KernelCut, SearchLayer, SearchSpace

P, C, T = Role.PRODUCED, Role.CONSUMED, Role.THROUGH
WIDTH = 8


class Net(nn.Module):
    """Convolution, BatchNorm, depthwise convolution, convolution, linear layer."""

    def __init__(self, *, dead: bool = False) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.dw = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.b, self.last = nn.Conv2d(WIDTH, 4, 5, padding=2), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        if dead:
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.dw(torch.relu(self.bn(self.a(x))))))
        return self.head(self.last(x).mean((2, 3)))


EXAMPLE = (torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(1)),)
PARTS = {
    ("a.weight", 0): P, ("a.bias", 0): P, ("bn.weight", 0): T, ("bn.bias", 0): T,
    ("bn.running_mean", 0): T, ("bn.running_var", 0): T, ("dw.weight", 0): T, ("dw.bias", 0): T,
    ("b.weight", 1): C,
}  # fmt: skip


def layer(*couplings: Coupling, name: str = "a", width: int = WIDTH, keep: int = 4) -> SearchLayer:
    # scattered, so that no slice of the first channels is right by accident
    order = tuple(sorted(range(width), key=lambda u: (u * 5 + 2) % width))
    group = ChannelGroup(width, 1, order, couplings)
    return SearchLayer(name, (name,), (Choice(keep), Choice(width)), group)


def right() -> list[Coupling]:
    return [Coupling(t, d, r, IndexMap.identity(WIDTH)) for (t, d), r in PARTS.items()]


def changed(at: str, change: Callable[[Coupling], Coupling | None]) -> list[Coupling]:
    found = [change(c) if c.tensor == at else c for c in right()]
    return [c for c in found if c is not None]


def rolled(places: list[int]) -> Callable[[Coupling], Coupling]:
    index = IndexMap.from_positions([[p] for p in places])
    return lambda c: replace(c, index=index)


def net(*, dead: bool = False) -> Net:
    torch.manual_seed(0)
    return Net(dead=dead)


MISTAKES = {
    "index map of the consumer shifted": changed("b.weight", rolled([*range(1, WIDTH), 0])),
    "index map of BatchNorm's mean reversed": changed(
        "bn.running_mean", rolled([*reversed(range(WIDTH))])
    ),
    "index map of the depthwise bias shifted": changed("dw.bias", rolled([*range(1, WIDTH), 0])),
    "consumer missing": changed("b.weight", lambda _: None),
    "BatchNorm's scale missing": changed("bn.weight", lambda _: None),
    "BatchNorm's mean missing": changed("bn.running_mean", lambda _: None),
    "bias missing": changed("a.bias", lambda _: None),
    "depthwise convolution missing": changed("dw.weight", lambda _: None),
    "producer missing": changed("a.weight", lambda _: None),
    "consumer in the wrong dimension": changed("b.weight", lambda c: replace(c, dim=0)),
    "consumer called a producer": changed("b.weight", lambda c: replace(c, role=P)),
    "tensor that does not exist": [*right(), replace(right()[0], tensor="a.nothing")],
    "positions outside of the tensor": changed("b.weight", rolled([*range(4, 4 + WIDTH)])),
    "all positions outside": [
        replace(c, index=IndexMap((Run(0, WIDTH, 99, 1, 1),))) for c in right()
    ],
    "a dimension that does not exist": changed("dw.bias", lambda c: replace(c, dim=3)),
}


@pytest.mark.parametrize("dead", [False, True])
def test_a_right_description_is_kept(dead: bool) -> None:
    space = verify_space(net(dead=dead), EXAMPLE, SearchSpace((layer(*right()),)))
    assert [x.name for x in space.layers] == ["a"]
    assert space.frozen == ()


# in a dead branch (the last BatchNorm starts with zeros) nothing that is done before it shows
@pytest.mark.parametrize("dead", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_description_is_frozen_with_a_reason(mistake: str, dead: bool) -> None:
    space = verify_space(net(dead=dead), EXAMPLE, SearchSpace((layer(*MISTAKES[mistake]),)))
    assert space.layers == ()
    (frozen,) = space.frozen
    assert frozen.name == "a"
    assert len(frozen.reason) > 20


def test_a_wrong_layer_does_not_take_right_ones_along() -> None:
    head = layer(
        Coupling("b.weight", 0, P, IndexMap.identity(4)),
        Coupling("b.bias", 0, P, IndexMap.identity(4)),
        *(Coupling(f"last.{leaf}", 0, T, IndexMap.identity(4))
          for leaf in ("weight", "bias", "running_mean", "running_var")),
        Coupling("head.weight", 1, C, IndexMap.identity(4)),
        name="b", width=4, keep=2,
    )  # fmt: skip
    wrong = layer(*MISTAKES["consumer missing"])
    both = verify_space(net(), EXAMPLE, SearchSpace((wrong, head)))
    assert [x.name for x in both.layers] == ["b"]
    assert [f.name for f in both.frozen] == ["a"]
    good = verify_space(net(), EXAMPLE, SearchSpace((layer(*right()), head)))
    assert [x.name for x in good.layers] == ["a", "b"]


def test_a_width_that_is_the_output_is_frozen() -> None:
    couplings = [
        Coupling("head.weight", 0, P, IndexMap.identity(3)),
        Coupling("head.bias", 0, P, IndexMap.identity(3)),
    ]
    out = layer(*couplings, name="head", width=3, keep=1)
    (frozen,) = verify_space(net(), EXAMPLE, SearchSpace((out,))).frozen
    assert "part of the network's output ([1, 3] would become [1, 1])" in frozen.reason


def both(couplings: list[Coupling], padding: int) -> tuple[Net, SearchLayer]:
    """A layer of channels and of a kernel; without its padding the kernel is cropped wrongly."""
    model = net()
    model.dw = nn.Conv2d(WIDTH, WIDTH, 5, padding=padding, groups=WIDTH)
    alone = layer(*couplings)
    choices = tuple(Choice(w, k) for w, k in ((4, 3), (8, 3), (4, 5), (8, 5)))
    cut = KernelCut("dw.weight", 5, 2)
    return model, replace(alone, choices=choices, kernel=cut)


@pytest.mark.parametrize(
    ("couplings", "padding", "kept"),
    [
        (right(), 2, [(4, 3), (8, 3), (4, 5), (8, 5)]),
        (right(), 0, [(4, None), (8, None)]),
        (MISTAKES["consumer missing"], 2, [(None, 3), (None, 5)]),
        (MISTAKES["consumer missing"], 0, None),
    ],
)
def test_of_channels_and_kernel_the_part_that_is_right_stays(
    couplings: list[Coupling], padding: int, kept: list[tuple[int | None, int | None]] | None
) -> None:
    model, described = both(couplings, padding)
    space = verify_space(model, EXAMPLE, SearchSpace((described,)))
    if kept is None:
        assert space.layers == ()
    else:
        (found,) = space.layers
        assert [(c.channels, c.kernel) for c in found.choices] == kept
        assert (found.group is None, found.kernel is None) == (
            kept[0][0] is None, kept[0][1] is None,
        )  # fmt: skip
    assert bool(space.frozen) is (kept is None or len(kept) == 2)


@pytest.mark.parametrize(("padding", "kept"), [(2, True), (0, False)])
def test_kernels_are_proved_as_well(padding: int, kept: bool) -> None:
    model = net()
    model.b.padding = (padding, padding)
    cut = KernelCut("b.weight", 5, 2)
    crop = SearchLayer("b", ("b",), (Choice(kernel=3), Choice(kernel=5)), kernel=cut)
    space = verify_space(model, EXAMPLE, SearchSpace((crop,)))
    assert bool(space.layers) is kept


class Mixer(nn.Module):
    """A linear layer along the positions: cutting channels changes how often it is applied."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.b = nn.Conv1d(2, 8, 1), nn.Linear(5, 5), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.mix(self.a(x))))


def test_a_table_that_disagrees_with_the_count_is_frozen() -> None:
    torch.manual_seed(0)
    couplings = [
        Coupling(t, d, r, IndexMap.identity(8))
        for t, d, r in (("a.weight", 0, P), ("a.bias", 0, P), ("b.weight", 1, C))
    ]
    (frozen,) = verify_space(
        Mixer(), (torch.randn(1, 2, 5),), SearchSpace((layer(*couplings),))
    ).frozen
    # 5 positions x 16, 4 of 8 channels x 25, 5 x 12 by count; the table still has 8 x 25
    assert frozen.reason == "its MAdds are 200, but the table says 300"


def test_units_of_uneven_size_are_frozen_by_the_parameters() -> None:
    model = net()
    model.extra = nn.Parameter(torch.randn(15))
    uneven = IndexMap((Run(0, 1, 0, 0, 1), Run(1, 7, 1, 2, 2)))
    odd = layer(*right(), Coupling("extra", 0, P, uneven))
    (frozen,) = verify_space(model, EXAMPLE, SearchSpace((odd,))).frozen
    assert "parameters are" in frozen.reason


class Fussy(nn.Module):
    """Takes one of its two layers smaller, but not both."""

    def __init__(self) -> None:
        super().__init__()
        for name in "abc":
            setattr(self, name, nn.Linear(3, 8))
            setattr(self, f"{name}2", nn.Linear(8, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        a, b, c = self.a(x), self.b(x), self.c(x)
        if a.shape[1] + b.shape[1] < 12:
            raise ValueError("a and b are too small together")
        return {"ab": self.a2(a) + self.b2(b), "c": [self.c2(c)]}


def test_layers_that_break_only_together_and_nested_outputs() -> None:
    torch.manual_seed(0)

    def linear(name: str) -> SearchLayer:
        parts = ((f"{name}.weight", 0, P), (f"{name}.bias", 0, P), (f"{name}2.weight", 1, C))
        return layer(*(Coupling(t, d, r, IndexMap.identity(8)) for t, d, r in parts), name=name)

    layers = tuple(map(linear, "abc"))
    model, example = Fussy(), (torch.randn(1, 3),)
    space = verify_space(model, example, SearchSpace(layers))
    assert [x.name for x in space.layers] == ["a", "c"]
    (frozen,) = space.frozen
    assert frozen.name == "b"
    assert "together with earlier layers" in frozen.reason
    assert "too small together" in frozen.reason
    materialise(model, space, space.smallest)(*example)


def test_a_layer_without_effect_cannot_be_checked() -> None:
    class Idle(Net):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) + 0 * super().forward(x)

    torch.manual_seed(0)
    (frozen,) = verify_space(Idle(), EXAMPLE, SearchSpace((layer(*right()),))).frozen
    assert "changes nothing in the output" in frozen.reason


def test_outputs_that_are_not_numbers_prove_nothing() -> None:
    class Undefined(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * float("nan")

    torch.manual_seed(0)
    assert verify_space(Undefined(), EXAMPLE, SearchSpace((layer(*right()),))).layers == ()


def test_the_model_is_not_touched_and_progress_is_told() -> None:
    model = net(dead=True).train()
    before = copy.deepcopy(model.state_dict())
    events: list[Event] = []
    verify_space(model, EXAMPLE, SearchSpace((layer(*right()),)), events.append)
    assert model.training
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert [(e.stage, e.done, e.total) for e in events] == [("verify", 1, 1)]


def test_a_model_that_does_not_run_is_a_data_error() -> None:
    with pytest.raises(DataError):
        verify_space(net(), (torch.randn(1, 9, 6, 6),), SearchSpace((layer(*right()),)))


def test_in_deep_networks_layers_far_apart_are_checked_together() -> None:
    """As carefully: one wrong layer among many right ones is found, and only that one is frozen."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(30)]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.Conv2d(8, 2, 3), nn.Flatten()).eval()
    image = (torch.randn(1, 3, 8, 8),)
    space = GenericAdapter().read(net, image)
    assert len(space.layers) > 24
    asked: list[int] = []
    assert verify_space(net, image, space, lambda event: asked.append(event.done)) == space
    assert asked == list(range(1, len(space.layers) + 1))
    broken = space.layers[3]
    assert broken.group is not None
    couplings = tuple(c for c in broken.group.couplings if not c.tensor.endswith("running_mean"))
    wrong = replace(broken, group=replace(broken.group, couplings=couplings))
    layers = (*space.layers[:3], wrong, *space.layers[4:])
    proved = verify_space(net, image, replace(space, layers=layers))
    assert [x.name for x in proved.layers] == [x.name for x in layers if x is not wrong]
