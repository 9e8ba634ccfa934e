"""LayerNAS (Fan et al., arXiv 2304.11517, Algorithm 1). Knows no torch.

Layers are decided in forward order. `M_l` holds the best prefixes of `l` decided layers, in
buckets of about equal cost: of such models only the best need be kept (Assumption 4.2), and the
best model at layer `l` extends one kept at `l - 1` (Assumption 4.1).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from compressor.buckets import Buckets, Members
from compressor.cost import Limit
from compressor.errors import BudgetError, SearchError
from compressor.ledger import Ledger, OnOutcome, Score
from compressor.outcome import Executor, Outcome, SearchResult
from compressor.reach import Reach
from compressor.space import Architecture

_PASSES = 4  # how often the rounds reach the last layer where evaluations are short
_ALL = 2**31


@dataclass(frozen=True)
class SearchSettings:
    """How LayerNAS spends its evaluations; the defaults are the paper's where it has them.

    Attributes:
        buckets: cost ranges of each layer (H); None makes one for each distinct cost.
        kept: prefixes kept in each bucket (k).
        parents: parents drawn in each visit of a layer (R); None allots from the evaluations.
        children: options tried for each parent (T); None allots from the evaluations.
        tightness: share of a limit that the answer uses at least, where a network can.
        undecided: what the undecided layers hold when a prefix is scored. "original" is the
            published form. "budget" fills them so that the network is within the limits: with
            few evaluations the published form spends nearly all of them on networks that
            could never be the answer.
    """

    buckets: int | None = 100
    kept: int = 3
    parents: int | None = None
    children: int | None = None
    tightness: float = 0.97
    undecided: Literal["budget", "original"] = "budget"

    def __post_init__(self) -> None:
        counts = {"kept": self.kept, "buckets": self.buckets}
        counts |= {"parents": self.parents, "children": self.children}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise SearchError(f"{name} must be at least 1, but got {value}")
        if not 0 <= self.tightness <= 1:
            raise SearchError(f"tightness must be in 0..1, but got {self.tightness}")
        if self.undecided not in ("budget", "original"):
            raise SearchError(
                f"undecided must be 'budget' or 'original', but got {self.undecided!r}"
            )


_DEFAULTS = SearchSettings()


def layer_nas(  # noqa: PLR0913
    *,
    sizes: Sequence[int],
    limits: Sequence[Limit],
    score: Score,
    settings: SearchSettings = _DEFAULTS,
    evaluations: int = 100,
    seed: int = 0,
    executor: Executor = map,
    known: Mapping[Architecture, Outcome] | None = None,
    on_outcome: OnOutcome | None = None,
    names: Sequence[str] | None = None,
) -> SearchResult:
    """Finds the best network within the limits.

    The same arguments give the same result, also where a part of the outcomes is already
    `known`. The result is never above a limit, and something within the limits is scored
    however few the evaluations.

    Args:
        sizes: number of options of each layer, in forward order; the last is the original.
        limits: costs with their limits; the first orders the frontier.
        score: higher is better; a network whose score raises or is not finite has failed.
        settings: buckets, allotment, form.
        evaluations: networks to score at most, failed and known ones included.
        seed: draws parents and options.
        executor: like `map`; gets the networks of one visit of a layer at a time.
        known: outcomes of an interrupted run; they count, but are not scored again.
        on_outcome: called with each new outcome as soon as it is there; may raise.
        names: names of the layers for messages.

    Raises:
        InfeasibleError: no network within the limits, before anything is scored.
        SearchError: no network within the limits could be scored.
        BudgetError: no limit was given, or two of one unit.
    """
    reach = make_reach(sizes, limits, settings, names)
    ledger = Ledger(
        reach=reach,
        score=score,
        evaluations=evaluations,
        executor=executor,
        known=known,
        on_outcome=on_outcome,
    )
    rng = random.Random(seed)  # noqa: S311 - reproducible draws, no secrets
    _LayerSearch(reach, ledger, settings, rng).run()
    return ledger.result()


def make_reach(
    sizes: Sequence[int],
    limits: Sequence[Limit],
    settings: SearchSettings,
    names: Sequence[str] | None,
) -> Reach:
    """Checks the form of the problem, then what the limits allow."""
    if not limits:
        raise BudgetError("a search needs at least one limit, but got none; give a budget")
    units = [limit.cost.unit for limit in limits]
    if len(set(units)) < len(units):
        raise BudgetError(f"each unit takes one limit, but got {units}; give the smaller one alone")
    for place, size in enumerate(sizes):
        if size < 1:
            name = names[place] if names else place
            raise SearchError(
                f"a layer needs at least one option, but got {size} for layer {name!r}"
            )
    return Reach(sizes, limits, settings.tightness, names)


class _LayerSearch:
    """One run of Algorithm 1: rounds over the layers."""

    def __init__(
        self, reach: Reach, ledger: Ledger, settings: SearchSettings, rng: random.Random
    ) -> None:
        self._reach = reach
        self._ledger = ledger
        self._settings = settings
        self._rng = rng
        self._layers = len(reach.sizes)
        self._members = [Members(settings.kept) for _ in range(self._layers + 1)]
        self._members[0].add(0, (), 0.0)
        self._untried: dict[Architecture, list[int]] = {}
        self._parents, self._children = _allotment(reach.sizes, ledger.left, settings)
        self._buckets = Buckets(reach, settings.buckets)
        # the published form scores networks above the limits, so some evaluations are set
        # aside for networks that can be the answer
        original = settings.undecided == "original"
        self._reserve = max(1, ledger.left // 10) if original else 0

    def run(self) -> None:
        """Rounds until nothing is untried or the evaluations are spent."""
        if self._settings.undecided == "budget":
            self._ledger.ask([self._reach.witness])
        moved = True
        while moved and self._ledger.left > self._reserve:
            moved = False
            for layer in range(self._layers):
                moved = self._visit(layer) or moved
        self._finish(exhausted=not moved)

    def _visit(self, layer: int) -> bool:
        """Tries options of one layer on parents drawn at random; False where none is untried."""
        moved = self._keep_defaults(layer)
        parents = [m.prefix for m in self._members[layer] if self._options(m.prefix)]
        children = []
        for parent in self._rng.sample(parents, min(self._parents, len(parents))):
            options = self._options(parent)
            for option in self._rng.sample(options, min(self._children, len(options))):
                options.remove(option)
                children.append((*parent, option))
        networks = [self._network(child) for child in children]
        self._ledger.ask([n for n in networks if n is not None], self._reserve)
        for child, network in zip(children, networks, strict=True):
            if network is not None:
                self._keep(child, network)
        return moved or bool(children)

    def _keep_defaults(self, layer: int) -> bool:
        """In the published form, a parent at its default is the same network one layer on."""
        if self._settings.undecided != "original":
            return False
        default = self._reach.original[layer]
        moved = False
        for member in self._members[layer]:
            network = self._reach.filled(member.prefix)
            known = self._ledger.score(network) is not None
            if known and default in self._options(member.prefix):
                self._options(member.prefix).remove(default)
                self._keep((*member.prefix, default), network)
                moved = True
        return moved

    def _options(self, prefix: Architecture) -> list[int]:
        """Untried options of the next layer that can still lead to an answer."""
        if prefix not in self._untried:
            options = range(self._reach.sizes[len(prefix)])
            self._untried[prefix] = [o for o in options if self._reach.reachable((*prefix, o))]
        return self._untried[prefix]

    def _network(self, prefix: Architecture) -> Architecture | None:
        """The network in which the prefix is judged; None where none is within the limits."""
        if self._settings.undecided == "original":
            network = self._reach.filled(prefix)
            whole = len(prefix) == self._layers
            return None if whole and not self._reach.inside(network) else network
        return self._reach.complete(prefix)

    def _keep(self, prefix: Architecture, network: Architecture) -> None:
        score = self._ledger.score(network)
        if score is not None:
            self._members[len(prefix)].add(self._buckets.key(prefix), prefix, score)

    def _finish(self, *, exhausted: bool) -> None:
        """Spends what was set aside on completions of the best prefixes, deepest first.

        Where nothing is left untried, only until some network is an answer.
        """
        if self._settings.undecided == "budget":
            return
        for network in self._completions():
            if self._ledger.left == 0 or (exhausted and self._ledger.answered()):
                return
            self._ledger.ask([network])

    def _completions(self) -> list[Architecture]:
        """Completed prefixes and the witness, those in the band first."""
        prefixes = [m.prefix for members in reversed(self._members) for m in members]
        found = [self._reach.complete(prefix) for prefix in prefixes[: 4 * self._reserve + 4]]
        networks = [n for n in found if n is not None and self._ledger.score(n) is None]
        networks.append(self._reach.witness)
        return sorted(dict.fromkeys(networks), key=lambda n: not self._reach.in_band(n))


def _allotment(sizes: Sequence[int], evaluations: int, settings: SearchSettings) -> tuple[int, int]:
    """Parents and children of a visit: everything where the evaluations suffice for it.

    Otherwise so many that the rounds reach the last layer several times.
    """
    row = math.inf if settings.buckets is None else settings.buckets * settings.kept
    prefixes, everything = 1.0, 0.0
    for size in sizes:
        prefixes = min(prefixes, row)
        everything += prefixes * size
        prefixes *= size
    if everything <= evaluations:
        return settings.parents or _ALL, settings.children or _ALL
    visit = max(1, evaluations // (_PASSES * len(sizes)))
    children = settings.children or max(1, math.isqrt(visit))
    return settings.parents or max(1, visit // children), children
