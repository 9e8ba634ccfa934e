"""Targets that are Python code: a file or a module that defines a few functions."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from cli.target import FORMS, Example, Target
from compressor.errors import CompressorError, DataError, TargetError
from compressor.multitask.task import Task, checked_tasks

_BATCH = "a tensor [N, …] or (inputs, targets)"
_SIGNATURES = {
    "build_model": "def build_model() -> torch.nn.Module:\n    return MyNet().eval()",
    "example_input": (
        "def example_input() -> torch.Tensor:  # or a tuple of tensors\n"
        "    return torch.zeros(1, 3, 32, 32)"
    ),
    "calibration_data": (
        f"def calibration_data():  # an iterable of batches: {_BATCH}\n    return list(loader)"
    ),
    "validation_data": (
        f"def validation_data():  # an iterable of batches: {_BATCH}\n    return loader"
    ),
    "training_data": f"def training_data():  # an iterable of batches: {_BATCH}\n    return loader",
    "tasks": (
        "def tasks():  # a list of two or more\n"
        "    return [compressor.Task(name=…, model=…, head=…, calibration=…, validation=…), …]"
    ),
    "score": "def score(model) -> float:  # higher is better\n    return accuracy(model)",
}
_PREFIX = "_compressor_target_"


def python_target(text: str, *, needs_data: bool) -> Target:
    """Imports a target and calls its functions.

    Raises:
        TargetError: it is missing, does not import, or a function is missing, raises or returns
            another type; the message names it and shows its signature.
        DataError: the calibration data is empty.
    """
    module = _load(text)
    build = _build_model(module, text)
    example = _example(_call(_function(module, "example_input", text), text))
    validation = training = score = None
    calibration: Iterable[Any] = ()
    if needs_data:
        calibration = _calibration(module, text)
        if hasattr(module, "validation_data"):
            validation = _passes(module, "validation_data", text)
        if hasattr(module, "training_data"):
            training = _passes(module, "training_data", text)
    if hasattr(module, "score"):
        score = _function(module, "score", text, arguments=1)
    return Target(text, build, example, calibration, validation, training, score)


def python_tasks(text: str) -> list[Any]:
    """Imports a target and calls its `tasks()`; what they hold is not looked at.

    Raises:
        TargetError: it is missing, does not import, or `tasks()` is missing, raises or returns no
            list.
    """
    found = _call(_function(_load(text), "tasks", text), text)
    if not isinstance(found, list | tuple):
        raise _returned("tasks", "a list of compressor.Task", found)
    return list(found)


def python_checked_tasks(text: str) -> tuple[Task, ...]:
    """The tasks of a target, each with an example of its inputs.

    Raises:
        TargetError: see `python_tasks`.
        UsageError: it returns no tasks, or one that cannot be.
    """
    return checked_tasks(python_tasks(text))


@dataclass(frozen=True)
class Passes:
    """Batches of a function that may hand out a generator: each pass calls it anew."""

    function: Callable[[], object]
    target: str

    def __iter__(self) -> Iterator[Any]:
        with _explained(f"{self.function.__name__}() of {self.target!r}"):
            yield from _iterable(self.function(), self.function.__name__)


def _calibration(module: ModuleType, text: str) -> list[Any]:
    """Read once: every evaluation needs the same batches."""
    batches = list(Passes(_function(module, "calibration_data", text), text))
    if not batches:
        raise DataError(
            f"calibration_data() of {text!r} must hold at least one batch, but is empty;\n"
            f"{_SIGNATURES['calibration_data']}"
        )
    return batches


def _passes(module: ModuleType, name: str, text: str) -> Iterable[Any]:
    function = _function(module, name, text)
    found = _iterable(_call(function, text), name)
    # A list or a loader serves every pass; only what is used up must be made again.
    return Passes(function, text) if isinstance(found, Iterator) else found


def _iterable(found: object, name: str) -> Iterable[Any]:
    # A tensor iterates as well, but over single inputs.
    if isinstance(found, Tensor) or not isinstance(found, Iterable):
        raise _returned(name, "an iterable of batches", found)
    return found


def _build_model(module: ModuleType, text: str) -> Callable[[], nn.Module]:
    function = _function(module, "build_model", text)

    def build_model() -> nn.Module:
        model = _call(function, text)
        if not isinstance(model, nn.Module):
            raise _returned("build_model", "a torch.nn.Module", model)
        return model

    return build_model


def _example(found: object) -> Example:
    parts = found if isinstance(found, tuple) else (found,)
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        raise _returned("example_input", "a tensor or a tuple of tensors", found)
    return found  # type: ignore[return-value]  # checked above


def _function(module: ModuleType, name: str, text: str, arguments: int = 0) -> Callable[..., Any]:
    function = getattr(module, name, None)
    if function is None:
        raise TargetError(
            f"a target must define {name}(), but {text!r} does not; "
            f"{_other_command(module, name)}add\n{_SIGNATURES[name]}"
        )
    if isinstance(function, nn.Module) or not callable(function):
        raise TargetError(
            f"{name} of {text!r} must be a function, but is {_kind(function)}; write\n"
            f"{_SIGNATURES[name]}"
        )
    try:
        inspect.signature(function).bind(*[None] * arguments)
    except TypeError as error:
        raise TargetError(
            f"{name} of {text!r} is called with {arguments or 'no'} "
            f"argument{'s' if arguments == 0 else ''}, but: {error}; write\n{_SIGNATURES[name]}"
        ) from error
    return function  # type: ignore[no-any-return]  # callable, as checked


def _other_command(module: ModuleType, name: str) -> str:
    """What else a target may be for."""
    if name == "tasks" and hasattr(module, "build_model"):
        return "it defines one network, which `compressor compress` takes; for several, "
    if name == "build_model" and hasattr(module, "tasks"):
        return "it defines tasks(), which `compressor compress-multitask` takes; for one network, "
    return ""


def _call(function: Callable[[], object], text: str) -> object:
    with _explained(f"{getattr(function, '__name__', function)}() of {text!r}"):
        return function()


def _load(text: str) -> ModuleType:
    path = Path(text)
    if path.suffix == ".py" or "/" in text or path.exists():
        return _load_file(path, text)
    return _load_module(text)


def _load_file(path: Path, text: str) -> ModuleType:
    if not path.is_file():
        problem = "is a directory" if path.is_dir() else "does not exist"
        raise TargetError(f"a target is {FORMS}, but the file {text!r} {problem}")
    name = f"{_PREFIX}{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise TargetError(f"a target file must end in .py, but got {text!r}")
    module = importlib.util.module_from_spec(spec)
    _importable_from(path.resolve().parent)
    sys.modules[name] = module  # dataclasses and worker processes look their module up there
    try:
        with _explained(f"importing {text!r}"):
            spec.loader.exec_module(module)
    except TargetError:
        del sys.modules[name]  # half a module is worse than none
        raise
    return module


def _load_module(text: str) -> ModuleType:
    _importable_from(Path.cwd())
    if not all(part.isidentifier() for part in text.split(".")) or not _is_there(text):
        raise TargetError(
            f"a target is {FORMS}, but no module {text!r} is installed or in this directory"
        )
    with _explained(f"importing {text!r}"):
        return importlib.import_module(text)


def _is_there(text: str) -> bool:
    with _explained(f"importing {text!r}"):
        try:
            return importlib.util.find_spec(text) is not None
        except ModuleNotFoundError as error:
            if error.name and f"{text}.".startswith(f"{error.name}."):
                return False
            raise  # the target is there, but something that its package needs is not


def _importable_from(folder: Path) -> None:
    """As for a script that Python runs: what lies beside it can be imported."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what the user's code raises into an error that says where, with no traceback."""
    try:
        yield
    except CompressorError:
        raise
    except (Exception, SystemExit) as error:
        lines = str(error).strip().splitlines() or [""]
        raise TargetError(
            f"{what} raised {type(error).__name__}: {lines[0]}{_place(error)}{_remedy(error)}"
        ) from error


def _place(error: BaseException) -> str:
    """The last line that is the user's own: not of this package, not of a library."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "site-packages" not in frame.filename
        and Path(frame.filename).parent != Path(__file__).parent
        and not frame.filename.startswith(("<", str(Path(inspect.__file__).parent)))
    ]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


def _remedy(error: BaseException) -> str:
    if "cuda" not in str(error).lower() or torch.cuda.is_available():
        return ""
    return (
        "; there is no CUDA device here: build the model on the CPU, and load weights with "
        "torch.load(..., map_location='cpu')"
    )


def _returned(name: str, expected: str, found: object) -> TargetError:
    return TargetError(
        f"{name}() must return {expected}, but returned {_kind(found)}; write\n{_SIGNATURES[name]}"
    )


def _kind(value: object) -> str:
    inner = ""
    if isinstance(value, tuple | list) and value:
        inner = f" of {', '.join(sorted({type(v).__name__ for v in value}))}"
    return "None" if value is None else f"{type(value).__name__}{inner}"
