"""Where the time goes in a network and in one of half its MAdds, as pictures."""

from __future__ import annotations

from pathlib import Path

from benchmarks.support import sample
from compressor.cost import Limit
from compressor.deploy.export import export_base
from compressor.device.measure import Settings
from compressor.device.profiling import profile_models
from compressor.report.profile_chart import write_profile_picture
from compressor.run.reading import read_network
from compressor.search.layer_nas import layer_nas

_HALF = 0.5
_RUNS = 100


def profiled(name: str, threads: int, pictures: Path | None) -> dict[str, float]:
    """Milliseconds of a sample's network and of the most even one of half its MAdds.

    Args:
        name: of the sample.
        threads: of ONNX Runtime.
        pictures: folder for `latency-profile-NAME.svg`.
    """
    module = sample(name)
    model, example = module.build_model(), (module.example_input(),)
    reading = read_network(model, example)
    space, graph = reading.space, export_base(model, example)
    limit = Limit(reading.madds, _HALF * reading.count.madds)
    half = layer_nas(sizes=space.sizes, limits=[limit], score=lambda _: 0.0, evaluations=1).best
    models = {
        "original": graph.slice(space, space.original),
        "half the MAdds": graph.slice(space, half.architecture),
    }
    found = profile_models(models, Settings(threads=threads), runs=_RUNS)
    if pictures is not None:
        write_profile_picture(found, pictures / f"latency-profile-{name}.svg")
    return {name: profile.ms for name, profile in found.items()}
