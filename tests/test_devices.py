"""From texts to devices, and the device that is a command."""

from __future__ import annotations

import os
import stat
import sys
import time
from pathlib import Path

import pytest

from compressor.device.command import CommandDevice, milliseconds, split_words
from compressor.device.devices import parse_device
from compressor.device.job import Job, Settings, answers, failure, readings
from compressor.device.local import LocalDevice
from compressor.device.measure import measure, measure_fully
from compressor.device.ssh import SshDevice, time_limit
from compressor.device.timing import Schedule
from compressor.errors import CompressorError, DeviceError, MeasureError, UsageError

QUICK = Settings(schedule=Schedule(rounds=6, seconds=1e-6))


# ---- texts


def test_local_is_this_machine() -> None:
    assert parse_device("local") == LocalDevice()
    assert parse_device("local").name == "local"


@pytest.mark.parametrize(
    ("text", "destination", "port"),
    [
        ("ssh://pi@raspberry.local:2222", "pi@raspberry.local", 2222),
        ("ssh://Board-1", "Board-1", None),
        ("ssh://me@10.0.0.7/", "me@10.0.0.7", None),
        ("ssh://me@[fe80::1]:22", "me@fe80::1", 22),
    ],
)
def test_a_machine_behind_ssh(text: str, destination: str, port: int | None) -> None:
    device = parse_device(text)
    assert isinstance(device, SshDevice)
    assert (device.name, device.destination, device.port) == (text.rstrip("/"), destination, port)
    assert (device.python, device.config, device.timeout) == ("python3", None, None)


def test_what_may_follow_a_machine(tmp_path: Path) -> None:
    config = tmp_path / "my config"
    config.touch()
    device = parse_device(f"ssh://h?python=/opt/c++%26/bin/python&config={config}&timeout=7.5")
    assert isinstance(device, SshDevice)
    assert (device.python, device.config) == ("/opt/c++&/bin/python", str(config))
    assert device.timeout == 7.5
    # a run that hung may resume with more time
    assert device.name == "ssh://h?python=/opt/c%2B%2B%26/bin/python"
    assert parse_device("ssh://h?timeout=60").name == parse_device("ssh://h").name


REFUSED = {
    "nothing": ("", "a device must be local, ssh://"),
    "another word": ("gpu", "a device must be local, ssh://"),
    "no host": ("ssh://", "a device must be"),
    "an option for a host": ("ssh://-oProxyCommand=id", "a device must be"),
    "an option for a user": ("ssh://-oProxyCommand=id@host", "a device must be"),
    "a password": ("ssh://me:secret@host", "a device must be"),
    "a path": ("ssh://host/tmp", "a device must be"),
    "a shell": ("ssh://host;id", "a device must be"),
    "a line break": ("ssh://host\n", "a device must be"),
    "port 0": ("ssh://host:0", "from 1 to 65535, but got 0"),
    "port 70000": ("ssh://host:70000", "from 1 to 65535"),
    "another key": ("ssh://host?shell=sh", r"python=…, config=…, timeout=…, but got 'shell=sh'"),
    "no value": ("ssh://host?python=", r"but got 'python='"),
    "no such file": ("ssh://host?config=/no/such/file", "there is no '/no/such/file'"),
    "no time": ("ssh://host?timeout=soon", "seconds above 0, but got 'soon'"),
    "no end": ("ssh://host?timeout=inf", "seconds above 0"),
    "no model": ("cmd:bench --fast", r"form cmd:'program … \{model\} …'.*bench --fast"),
    "only a model": ("cmd:{model}", "form cmd"),
    "no command": ("cmd:", "form cmd"),
    "an open quote": ("cmd:bench 'x {model}", "close its quotes"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_texts_that_are_no_device(case: str) -> None:
    text, said = REFUSED[case]
    with pytest.raises(UsageError, match=said):
        parse_device(text)


def test_words_are_quoted_as_in_a_shell() -> None:
    assert split_words("adb shell 'a b' {model}") == ("adb", "shell", "a b", "{model}")
    assert split_words("'bench --in={model}'") == ("bench", "--in={model}")


# ---- what a command prints


@pytest.mark.parametrize(
    ("output", "value"),
    [
        ("12.3", 12.3), ("12.3 ms\n", 12.3), ("12ms", 12), ("1.5e1 ms", 15),
        ("loading…\nAverage latency: 12.3 ms\n\n", 12.3), ("avg=4.25", 4.25),
        ("10 runs: 12.3", 12.3),
    ],
)  # fmt: skip
def test_the_last_number_is_the_time(output: str, value: float) -> None:
    assert milliseconds(output, "cmd") == value


@pytest.mark.parametrize(
    "output",
    ["", "fine", "12.3 s", "12.3 us", "12,3", "-1", "0", "0.0 ms", "nan", "inf", "1e999", "v1.2.3",
     "12.3 ms (100 runs)", "12.3 ms\ndone", "0x1f"],
)  # fmt: skip
def test_what_is_no_time(output: str) -> None:
    with pytest.raises(DeviceError, match=r"^cmd:b: .*must end in milliseconds above 0"):
        milliseconds(output, "cmd:b")


# ---- a command


def program(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\nimport os, pathlib, sys, time\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


SIZED = "print(len(pathlib.Path(sys.argv[1]).read_bytes()), 'ms')"


def test_a_command_is_run_in_turns(tmp_path: Path) -> None:
    log = tmp_path / "log"
    body = f"open({str(log)!r}, 'a').write(pathlib.Path(sys.argv[1]).name + '\\n')\n" + SIZED
    device = parse_device(f"cmd:{program(tmp_path / 'bench', body)} {{model}}")
    (tmp_path / "$(touch pwned); 'b'.onnx").write_bytes(b"x" * 20)
    models = {"a": b"x" * 10, "b": tmp_path / "$(touch pwned); 'b'.onnx"}
    found = measure_fully(Job(models, QUICK), device)
    assert found.latencies["a"].median_ms == pytest.approx(10)
    assert found.latencies["b"].ratio == pytest.approx(2)
    assert found.latencies["b"].verdict == "slower"
    assert (found.runtime, found.processor) == ("", "")
    names = log.read_text().split()
    assert sorted(names) == ["model-0.onnx"] * 6 + ["model-1.onnx"] * 6
    assert len({tuple(names[i : i + 2]) for i in range(0, 12, 2)}) == 2  # the order changes
    assert not list(tmp_path.glob("**/pwned"))


def test_rounds_last_as_long_as_the_schedule_says(tmp_path: Path) -> None:
    device = parse_device(f"cmd:{program(tmp_path / 'bench', SIZED)} {{model}}")
    assert isinstance(device, CommandDevice)
    ticks = iter(range(10**6))
    clocked = CommandDevice(device.name, device.words, clock=lambda: float(next(ticks)))
    schedule = Schedule(rounds=6, seconds=7.5)
    taken = clocked.take(Job({"a": b"x"}, Settings(schedule=schedule)))
    assert taken.turns["a"].shape == (6 + 7, 1)  # the clock is asked once six rounds are done


def test_numbers_that_a_command_can_be_told(tmp_path: Path) -> None:
    body = "print(100 * int(sys.argv[2]) + int(sys.argv[3]))"
    device = parse_device(
        f"cmd:{program(tmp_path / 'bench', body)} {{model}} {{threads}} {{batch}}"
    )
    settings = Settings(threads=4, schedule=QUICK.schedule)
    assert measure({"a": b"x"}, settings, batch=8, device=device)["a"].median_ms == 408


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (Job({}, Settings(threads=2)), r"about threads itself.*write \{threads\}"),
        (Job({}, Settings(), batch=2), r"about batch itself.*write \{batch\}"),
        (Job({}, Settings(provider="Other")), "about provider itself"),
        (Job({}, Settings(optimisation="basic")), "about optimisation itself"),
        (Job({}, Settings(affinity=(0,))), "about affinity itself"),
        (Job({}, Settings(), shapes={"x": (1,)}), "about shape itself"),
        (Job({}, Settings(), memory=True), "about memory itself"),
    ],
)
def test_what_a_command_cannot_be_told_is_refused(job: Job, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_device("cmd:true {model}").take(job)


def test_a_program_that_is_not_there() -> None:
    device = parse_device("cmd:no-such-program-anywhere {model}")
    with pytest.raises(UsageError, match="there is no 'no-such-program-anywhere'"):
        device.check(QUICK)
    with pytest.raises(DeviceError, match=r"cannot be started: No such file"):
        measure({"a": b"x"}, QUICK, device=device)
    parse_device("cmd:true {model}").check(QUICK)


def test_nonsense_is_an_error_that_quotes_it(tmp_path: Path) -> None:
    device = parse_device(f"cmd:{program(tmp_path / 'b', 'print(chr(1), 3, chr(39))')} {{model}}")
    with pytest.raises(DeviceError, match=r"model 'mine'.*must end in milliseconds.*3 "):
        measure({"mine": b"x"}, QUICK, device=device)


def test_a_command_that_fails_is_started_again(tmp_path: Path) -> None:
    body = (
        f"seen = pathlib.Path({str(tmp_path / 'seen')!r})\n"
        "if not seen.exists(): seen.touch(); sys.exit('device offline')\n" + SIZED
    )
    device = parse_device(f"cmd:{program(tmp_path / 'bench', body)} {{model}}")
    assert measure({"a": b"xxx"}, QUICK, device=device)["a"].median_ms == 3


def test_a_command_that_fails_always(tmp_path: Path) -> None:
    device = parse_device(f"cmd:{program(tmp_path / 'b', 'sys.exit(chr(110) * 3)')} {{model}}")
    with pytest.raises(DeviceError, match=r"failed 3 times, at last with status 1.* said: nnn"):
        measure({"a": b"x"}, QUICK, device=device)


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    left = tmp_path / "left"
    body = "import subprocess; p = subprocess.Popen(['sleep', '600'])\n"
    body += f"pathlib.Path({str(left)!r}).write_text(str(p.pid)); time.sleep(600)"
    words = (str(program(tmp_path / "bench", body)), "{model}")
    start = time.monotonic()
    with pytest.raises(DeviceError, match=r"must end within 3 s.*may hang"):
        CommandDevice("cmd:x", words, timeout=3).take(Job({"a": b"x"}, QUICK))
    assert time.monotonic() - start < 60
    assert not alive(int(left.read_text()))


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be counted does not."""
    for _ in range(50):
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text():
                return False
        except (ProcessLookupError, FileNotFoundError):
            return False
        time.sleep(0.1)
    return True


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    for text in ("cmd:true {model}", "ssh://nowhere.invalid", "local"):
        with pytest.raises(MeasureError, match=r"model 'm': .*none\.onnx"):
            measure({"m": tmp_path / "none.onnx"}, QUICK, device=parse_device(text))


# ---- answers

MARK = "mark "
JOB = Job({"a": b"", "b": b""}, QUICK)


def test_only_marked_lines_are_answers() -> None:
    text = 'hello\n{"turns": 1}\nnot mark {}\nmark {"turns": []}\nmark\nbye'
    assert answers(text, MARK) == [{"turns": []}]


@pytest.mark.parametrize("text", ["mark {", "mark 3", "mark [" + "[" * 100_000])
def test_a_broken_answer(text: str) -> None:
    with pytest.raises(DeviceError, match=r"an answer must be"):
        answers(text, MARK)


GOOD = {"turns": [[[1.0, 2.0]], [[3.0, 4.0]]], "runtime": "1", "processor": "p"}


def test_a_whole_answer() -> None:
    found = readings(JOB, [GOOD])
    assert {name: turns.tolist() for name, turns in found.turns.items()} == {
        "a": [[1.0, 2.0]], "b": [[3.0, 4.0]],
    }  # fmt: skip
    assert (found.runtime, found.processor, found.memory) == ("1", "p", {})


@pytest.mark.parametrize(
    "change",
    [
        {"turns": [[[1.0]]]}, {"turns": [[[1.0]], [[1.0], [2.0]]]}, {"turns": [[], []]},
        {"turns": [[[1.0]], [["x"]]]}, {"turns": [[[1.0]], [[float("nan")]]]},
        {"turns": [[[1.0]], [[-1.0]]]}, {"turns": [[[1.0]], [1.0]]}, {"turns": 3}, {"turns": None},
    ],
)  # fmt: skip
def test_answers_of_another_form(change: dict[str, object]) -> None:
    with pytest.raises(DeviceError, match=r"another form|times must be finite"):
        readings(JOB, [{**GOOD, **change}])
    with pytest.raises(DeviceError, match="another form"):
        readings(JOB, [{"turns": GOOD["turns"]}])


@pytest.mark.parametrize(
    ("told", "kind", "said"),
    [
        ({"kind": "usage", "message": "no", "model": None}, UsageError, "^no$"),
        ({"kind": "model", "message": "no", "model": 1}, MeasureError, "^model 'b': no$"),
        ({"kind": "model", "message": "no", "model": 9}, MeasureError, "^no$"),
        ({"kind": "missing", "message": "no", "model": None}, DeviceError, "onnxruntime.*no$"),
        ({"kind": "other", "message": "no"}, DeviceError, "another form"),
        (3, DeviceError, "another form"),
    ],
)
def test_errors_that_an_agent_tells(told: object, kind: type[CompressorError], said: str) -> None:
    error = failure(told, ["a", "b"])
    assert type(error) is kind
    with pytest.raises(kind, match=said):
        raise error


def test_a_measurement_has_a_limit_that_grows_with_what_is_asked() -> None:
    small = time_limit(Job({"a": b""}, QUICK), 1000)
    assert small > 120
    assert time_limit(JOB, 1000) > small
    assert time_limit(Job({"a": b""}, QUICK, memory=True), 1000) > small
    assert time_limit(Job({"a": b""}, Settings()), 1000) > small
    assert time_limit(Job({"a": b""}, QUICK), 100_000_000) > small + 60
