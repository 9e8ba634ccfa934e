"""Candidates on Ray's workers: the same run as in one process, also where workers die.

One cluster of two nodes with a core each serves all tests; it really runs on this machine.
"""

from __future__ import annotations

import math
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from cli.python_target import python_target
from compressor.errors import RunError, UsageError, WorkerError
from compressor.progress import Event, silent
from compressor.score.scorer import Recipes, Scorer
from compressor.search.journal import Journal
from compressor.space import SearchSpace
from compressor.workers import cluster as joining
from compressor.workers import parcel, pool
from compressor.workers.crew import RayCrew, Staff, hired
from compressor.workers.pool import Call, Lost
from tests import networks
from tests.test_library import EXAMPLE, images
from tests.test_pipeline import without_export
from tests.test_trials import library

EVALUATIONS = 8


def labelled(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(16, 3, 16, 16, generator=rng), torch.randint(0, 10, (16,), generator=rng))
        for _ in range(count)
    ]


def compress(out: Path, **changes: Any) -> compressor.Result:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "budget": "madds=50%",
        "calibration": labelled(2, 0),
        "validation": labelled(10, 1),
        "score": "agreement",
        "evaluations": EVALUATIONS,
        "out": out,
        "batch": 2,
        **changes,
    }
    return compressor.compress(networks.Residual().eval(), EXAMPLE[0], **settings)


def told(run: Path) -> tuple[Any, ...]:
    """What the journal of a run holds, but for seconds."""
    with Journal.read(run / "journal.sqlite") as journal:
        scored = [(a, o.score, o.reason, o.repeat) for a, o in journal.evaluations()]
        return scored, journal.get("given up"), journal.get("searches")


def own(net: nn.Module) -> float:
    return sum(math.sin(p.numel()) for p in net.parameters())


def interrupting(at: int) -> Any:
    """Interrupts the driver when so many networks are scored."""

    def progress(event: Event) -> None:
        if (event.stage, event.done) == ("search", at):
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def without_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        without_export(patch)
        yield


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory, without_files: None) -> Path:
    """A run in this process, two networks at a time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        out = tmp_path_factory.mktemp("single") / "run"
        compress(out)
    finally:
        torch.set_num_threads(threads)
    return out


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster of two nodes, this process connected to it."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install ray")
    utilities = pytest.importorskip("ray.cluster_utils", reason="Ray's test utilities are missing")
    room = {"object_store_memory": 100 * 2**20, "include_dashboard": False}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in joining._QUIET.items():
            patch.setenv(name, value)
        made = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **room})
        try:
            made.add_node(num_cpus=1, **room)
            ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            yield made
        finally:
            ray.shutdown()
            made.shutdown()


# ---- the same as one process


@pytest.mark.usefixtures("nodes", "without_files")
def test_two_workers_come_to_the_same_as_one_process(tmp_path: Path, single: Path) -> None:
    events: list[Event] = []
    result = compress(tmp_path / "run", workers=2, progress=events.append)
    assert told(tmp_path / "run") == told(single)
    assert {e.total for e in events if e.stage == "workers"} == {2}
    compressor.read_trace(result.run)


@pytest.mark.usefixtures("nodes", "without_files")
def test_other_workers_may_resume_a_run_with_the_same_batch(tmp_path: Path, single: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / "run", progress=interrupting(3))
    with pytest.raises(RunError, match="batch was 2 and is now 3"):
        compress(tmp_path / "run", workers=2, batch=3)
    compress(tmp_path / "run", workers=2)
    assert told(tmp_path / "run")[:2] == told(single)[:2]


# ---- workers that die


class Dies:
    """A score that ends its process at one network, the first time."""

    def __init__(self, folder: Path, size: int) -> None:
        self.marker, self.size = folder / "died", size

    def __call__(self, net: nn.Module) -> float:
        if sum(p.numel() for p in net.parameters()) == self.size and not self.marker.exists():
            self.marker.touch()
            os._exit(1)
        return own(net)


@pytest.mark.usefixtures("nodes")
def test_a_worker_that_dies_costs_its_candidates_time(tmp_path: Path) -> None:
    made = library()
    batch = [made.space.original, tuple(0 for _ in made.space.sizes)]
    score = Dies(tmp_path, sum(p.numel() for p in made.model.parameters()))
    scorer = Scorer(made, EXAMPLE, images(2), score, Recipes())
    with hired(scorer, Staff(1), silent) as crew:
        found = [a.outcome for a in crew.answers(batch, None)]
    assert score.marker.exists()
    plain = Scorer(made, EXAMPLE, images(2), own, Recipes())
    assert [o.score for o in found] == [plain(a) for a in batch]


class Fatal:
    """A worker that dies of some numbers."""

    def load(self) -> str:
        return ""

    def score(self, number: tuple[int], _: object) -> tuple[int]:
        if number[0] < 0:
            os._exit(1)
        return number


@pytest.mark.usefixtures("nodes")
def test_a_candidate_that_kills_twice_has_failed_with_the_reason() -> None:
    import ray  # noqa: PLC0415

    actor = ray.remote(Fatal).options(num_cpus=1)

    def hire() -> tuple[Any, Any]:
        made = actor.remote()
        return made, made.load.remote()

    calls: Any = [(1,), (-1,), (2,)]
    made = pool.Pool(ray, 2, hire, lambda _: None)
    try:
        found = list(RayCrew(made, ray, Staff(2), SearchSpace(()), silent).answers(calls, None))
    finally:
        made.close()
    assert found[::2] == [(1,), (2,)]
    outcome = found[1].outcome
    assert outcome.score is None
    assert "the workers that scored it died: ActorDiedError" in outcome.reason


def test_the_other_node_goes_on_where_one_is_lost(nodes: Any) -> None:
    import ray  # noqa: PLC0415

    class Where:
        def load(self) -> str:
            return ""

        def here(self, seconds: float) -> str:
            time.sleep(seconds)
            return str(ray.get_runtime_context().get_node_id())

    actor = ray.remote(Where).options(num_cpus=1, scheduling_strategy="SPREAD")

    def hire() -> tuple[Any, Any]:
        made = actor.remote()
        return made, made.load.remote()

    extra = nodes.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    made = pool.Pool(ray, 3, hire, lambda _: None)
    try:
        before = list(made.results([Call("here", (1.0,))] * 6))
        assert len(set(before)) == 3
        calls = made.results([Call("here", (1.0,))] * 6)
        first = next(calls)
        nodes.remove_node(extra, allow_graceful=False)
        after = [first, *calls]
        assert not any(isinstance(found, Lost) for found in after)
        assert len(after) == 6
    finally:
        made.close()


# ---- what is sent


@pytest.mark.usefixtures("nodes")
def test_code_of_a_target_file_comes_along(tmp_path: Path) -> None:
    (tmp_path / "helping.py").write_text("FACTOR = 3.0\n")
    (tmp_path / "net.py").write_text(
        "import torch\nfrom helping import FACTOR\n\n"
        "def build_model():\n    return torch.nn.Identity()\n\n"
        "def example_input():\n    return torch.zeros(1, 3, 16, 16)\n\n"
        "def score(model):\n    return FACTOR * sum(p.numel() for p in model.parameters())\n"
    )
    score = python_target(str(tmp_path / "net.py"), needs_data=False).score
    try:
        scorer = Scorer(library(), EXAMPLE, images(2), score, Recipes())
        with hired(scorer, Staff(1), silent) as crew:
            (found,) = crew.answers([library().space.original], None)
        assert found.outcome.score == 3 * sum(p.numel() for p in library().model.parameters())
    finally:
        sys.path.remove(str(tmp_path))


@pytest.mark.usefixtures("nodes")
def test_what_cannot_be_sent_is_named(tmp_path: Path) -> None:
    lock = threading.Lock()

    def score(net: nn.Module) -> float:
        with lock:
            return own(net)

    with pytest.raises(UsageError, match=r"the score or its validation data cannot be sent.*lock"):
        compress(tmp_path / "run", workers=2, validation=None, score=score)
    assert not list((tmp_path / "run").glob("*"))


@pytest.mark.usefixtures("nodes")
def test_what_a_worker_cannot_load_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "compressor.workers.crew.versions",
        lambda: {"python": "2.7", "torch": "0", "layernas-compressor": "0"},
    )
    scorer = Scorer(library(), EXAMPLE, images(2), own, Recipes())
    with (
        pytest.raises(WorkerError, match=r"it has python 3.* instead of 2\.7"),
        hired(scorer, Staff(1), silent) as crew,
    ):
        list(crew.answers([library().space.original], None))


@pytest.mark.usefixtures("nodes")
def test_a_cluster_without_room_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_PATIENCE", 1.0)
    scorer = Scorer(library(), EXAMPLE, images(2), own, Recipes())
    with (
        pytest.raises(WorkerError, match=r"none of 1 was there after 1 s; .* 0 GPUs in all"),
        hired(scorer, Staff(1, gpus=1.0), silent) as crew,
    ):
        list(crew.answers([library().space.original], None))


# ---- what is refused


def test_without_ray_the_option_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'layernas-compressor\[ray\]'"):
        compress(tmp_path / "run", workers=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"workers": 0}, "workers must be at least 1, but got 0"),
        ({"batch": 0}, "batch must be at least 1, but got 0"),
        ({"workers": 3, "batch": 1}, "give --batch 3"),
        ({"worker_gpus": -1.0}, "worker_gpus must be a number from 0"),
    ],
)
def test_workers_that_cannot_be_meant(tmp_path: Path, changes: Any, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        compress(tmp_path / "run", **changes)


class RefusedError(Exception):
    """As Ray's own errors, which have no base but `Exception`."""


class NoRay:
    """A package that connects to nobody."""

    exceptions = SimpleNamespace(RayError=RefusedError)

    def is_initialized(self) -> bool:
        return False

    def init(self, **_: Any) -> None:
        raise ConnectionError("nobody there\nmore")

    def shutdown(self) -> None:
        pass


def test_no_cluster_at_an_address_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "require_ray", NoRay)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with (
            pytest.raises(UsageError, match=f"no cluster answers at {address}: nobody there;"),
            joining.connected(address, 1),
        ):
            pass


def test_a_token_that_cannot_be_had_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses(NoRay):
        def init(self, **_: Any) -> None:
            raise RefusedError("the file of the token is empty")

    monkeypatch.setattr(joining, "require_ray", Refuses)
    with (
        pytest.raises(UsageError, match=r"token is empty; .*ray get-auth-token"),
        joining.connected("auto", 1),
    ):
        pass


def test_a_name_that_no_machine_has_is_an_error_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "require_ray", NoRay)
    with pytest.raises(UsageError, match=r"no cluster answers at a\.\.b:1"):
        joining.require_cluster("a..b:1")


@pytest.mark.parametrize("kind", ["{}", "ray://{}"])
def test_an_address_where_nothing_listens_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    class Waits(NoRay):
        def init(self, **_: Any) -> None:
            pytest.fail("Ray would try for minutes")

    monkeypatch.setattr(joining, "require_ray", Waits)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    address = kind.format(f"127.0.0.1:{port}")
    with pytest.raises(UsageError, match=r"no cluster answers at .*refused"):
        joining.require_cluster(address)
    with (
        pytest.raises(UsageError, match=r"no cluster answers at .*refused"),
        joining.connected(address, 1),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "token", "mode", "shown"),
    [
        ("auto", True, None, "token"),
        ("auto", False, None, None),
        ("auto", True, "disabled", "disabled"),
        (None, True, None, None),
    ],
)
def test_a_cluster_is_shown_the_token_that_ray_has_put_down(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    address: str | None,
    token: bool,
    mode: str | None,
    shown: str | None,
) -> None:
    """Else a cluster of `ray start` on this very machine refuses whoever connects."""
    found: list[str | None] = []

    class Notes(NoRay):
        def init(self, **_: Any) -> None:
            found.append(os.environ.get("RAY_AUTH_MODE"))
            os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does where it starts a cluster

    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    monkeypatch.setattr(joining, "require_ray", Notes)
    with joining.connected(address, 1):
        pass
    assert found == [shown]
    assert os.environ.get("RAY_AUTH_MODE") == mode


def test_tensors_of_a_gpu_are_put_on_the_workers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[int] = []
    monkeypatch.setattr(Tensor, "cuda", lambda self: moved.append(len(self)) or self, raising=True)
    found = parcel._on_gpu(torch.zeros(3), True)
    assert (moved, found.requires_grad) == ([3], True)
