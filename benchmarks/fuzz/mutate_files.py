"""Ways to break whole files: databases, ONNX graphs, weights, images, and what files are."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import onnx
from onnx import TensorProto, helper

from benchmarks.fuzz.mutate import NUMBERS, WORDS, broken_bytes, broken_json, value

_SPARSE = 5 << 30
_SUPER = bytes.fromhex("d9d505f920a163d7")  # ends a rollback journal that names another file


def break_bytes(path: Path, rng: Random) -> None:
    """Other bytes in the same file."""
    path.write_bytes(broken_bytes(path.read_bytes(), rng))


def break_json(path: Path, rng: Random) -> None:
    """Other values in the same file, mostly; now and then other bytes."""
    if rng.random() < 0.2:
        break_bytes(path, rng)
        return
    text = broken_json(path.read_text(encoding="utf-8"), rng)
    path.write_text(text, encoding="utf-8", errors="surrogatepass")


def break_kind(path: Path, rng: Random) -> None:
    """Something else in the place of a file; `outside` lies beside the folder that holds all."""
    outside = Path(os.environ["FUZZ_OUTSIDE"])
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    way = rng.choice(("gone", "folder", "pipe", "sparse", "link", "link", "loop", "device"))
    if way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "sparse":
        path.touch()
        os.truncate(path, _SPARSE)
    elif way == "link":
        path.symlink_to(outside / rng.choice(("canary.txt", "new.txt", "empty.txt", ".")))
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "device":
        path.symlink_to(rng.choice(("/dev/zero", "/dev/full", "/proc/self/mem")))


def break_journal(path: Path, rng: Random) -> None:
    """Rows, notes, tables, or bytes of a journal, or the files that SQLite keeps beside it."""
    way = rng.random()
    if way < 0.2:
        break_bytes(path, rng)
    elif way < 0.3:
        _beside(path, rng)
    elif way < 0.65:
        _notes(path, rng)
    else:
        _statement(path, rng)


def _beside(path: Path, rng: Random) -> None:
    name = f"{path.name}-{rng.choice(('journal', 'journal', 'wal', 'shm'))}"
    victim = str(Path(os.environ["FUZZ_OUTSIDE"]) / "canary.txt").encode()
    page = struct.pack(">8sIIIII", bytes.fromhex("d9d505f920a163d7"), 1, 7, 2, 512, 4096)
    page = page.ljust(512, b"\0") + struct.pack(">I", 1) + bytes(4096) + struct.pack(">I", 0)
    check = struct.pack(">II", len(victim), sum(victim))
    named = page + struct.pack(">I", 0x40000000 // 4096 + 1) + victim + check + _SUPER
    other = broken_bytes(path.read_bytes()[:5000], rng)
    path.with_name(name).write_bytes(rng.choice((named, page, other, b"")))


@contextlib.contextmanager
def _opened(path: Path) -> Any:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeError):
            yield connection
    finally:
        connection.close()


def _notes(path: Path, rng: Random) -> None:
    with _opened(path) as connection:
        key, text = rng.choice(connection.execute("SELECT key, value FROM notes").fetchall())
        new = broken_json(text, rng)
        connection.execute("UPDATE notes SET value = ? WHERE key = ?", (new, key))


_COLUMNS = {
    "evaluations": ("number", "architecture", "score", "reason", "seconds", "costs", "repeat"),
    "notes": ("key", "value"),
    "costs": ("unit", "architecture", "value"),
}
_STATEMENTS = (
    "DROP TABLE notes", "DELETE FROM notes", "DELETE FROM evaluations WHERE number % 2",
    "PRAGMA user_version = 7", "PRAGMA journal_mode = WAL", "CREATE VIEW v AS SELECT 1",
    "ALTER TABLE costs ADD COLUMN more TEXT", "CREATE INDEX i ON costs (value)",
    "PRAGMA encoding = 'UTF-16'", "PRAGMA page_size = 512", "VACUUM",
    "CREATE TRIGGER t AFTER INSERT ON evaluations BEGIN DELETE FROM notes; END",
    "INSERT INTO notes VALUES ('note:x', printf('%.*c', 40000000, '['))",
    "WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 20000) "
    "INSERT INTO evaluations SELECT i, '[' || i || ']', 0.5, '', 1.0, '{}', 0 FROM n",
)  # fmt: skip


def _statement(path: Path, rng: Random) -> None:
    with _opened(path) as connection:
        if rng.random() < 0.35:
            connection.execute(rng.choice(_STATEMENTS))
            return
        table = rng.choice(tuple(_COLUMNS))
        column = rng.choice(_COLUMNS[table])
        new = value(rng)
        if isinstance(new, (list, dict)):
            new = json.dumps(new)
        if rng.random() < 0.2:
            new = rng.randbytes(20)
        if rng.random() < 0.3 and column == "architecture":
            new = json.dumps([rng.choice(NUMBERS) for _ in range(rng.choice((0, 1, 2, 50)))])
        connection.execute(f"UPDATE {table} SET {column} = ?", (new,))  # noqa: S608


def break_weights(path: Path, rng: Random) -> None:
    """The header of a safetensors file, or its bytes."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    way = rng.random()
    if way < 0.4:
        path.write_bytes(broken_bytes(data, rng))
    elif way < 0.5:
        path.write_bytes(struct.pack("<Q", rng.choice((0, 1, 2**31, 2**62, 2**64 - 1))) + data[8:])
    else:
        text = broken_json(data[8 : 8 + size].decode(), rng).encode("utf-8", "surrogatepass")
        if rng.random() < 0.3:
            text = data[8 : 8 + size].replace(b'"F32"', rng.choice((b'"F64"', b'"I32"', b'"U8" ')))
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def break_model(path: Path, rng: Random) -> None:
    """The graph of an ONNX file, where its weights lie, or its bytes."""
    way = rng.random()
    if way < 0.35:
        break_bytes(path, rng)
        return
    model = onnx.load(str(path), load_external_data=False)
    for _ in range(rng.choice((1, 1, 2))):
        rng.choice(_GRAPHS)(model, rng)
    path.write_bytes(model.SerializeToString())


def _external(model: onnx.ModelProto, rng: Random) -> None:
    """Weights that are said to lie somewhere else."""
    tensor = rng.choice(model.graph.initializer)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    outside = os.environ["FUZZ_OUTSIDE"]
    places = (
        f"{outside}/canary.txt", "../../outside/canary.txt", "/dev/zero", "/etc/passwd", "..", "",
        "./././beside.bin", "*/_ORT_MEM_ADDR_/*", "beside.bin", "x" * 5000, "pipe", "link",
    )  # fmt: skip
    given = {
        "location": rng.choice(places),
        "offset": rng.choice(("0", "-1", "4", str(2**63), "1e9", "nan", "")),
        "length": rng.choice(("12", "864", "-1", str(2**62), "0", "x")),
        rng.choice(("checksum", "size", "")): "0",
    }
    for key, text in given.items():
        if rng.random() < 0.8:
            entry = tensor.external_data.add()
            entry.key, entry.value = key, text


def _shape(model: onnx.ModelProto, rng: Random) -> None:
    port = rng.choice([*model.graph.input, *model.graph.output])
    dims = port.type.tensor_type.shape.dim
    if rng.random() < 0.2:
        del dims[:]
        return
    size = rng.choice((0, -1, 1, 7, 4096, 65536, 2**31, 2**40, 2**62))
    rng.choice(dims).dim_value = size


def _type(model: onnx.ModelProto, rng: Random) -> None:
    port = rng.choice([*model.graph.input, *model.graph.output])
    port.type.tensor_type.elem_type = rng.choice((0, 1, 2, 7, 8, 9, 10, 11, 14, 16, 99))


def _weight(model: onnx.ModelProto, rng: Random) -> None:
    tensor = rng.choice(model.graph.initializer)
    act = rng.randrange(4)
    if act == 0 and tensor.dims:
        tensor.dims[rng.randrange(len(tensor.dims))] = rng.choice((0, -1, 1, 2**31, 2**62))
    elif act == 1:
        tensor.data_type = rng.choice((0, 1, 2, 7, 8, 11, 99))
    elif act == 2:
        tensor.raw_data = broken_bytes(tensor.raw_data, rng)
    else:
        tensor.name = rng.choice(WORDS).replace("\ud800", "?")


def _node(model: onnx.ModelProto, rng: Random) -> None:
    node = rng.choice(model.graph.node)
    act = rng.randrange(5)
    if act == 0:
        node.op_type = rng.choice(("", "Nothing", "If", "Loop", "MatMul", "Resize", "x" * 3000))
    elif act == 1:
        node.domain = rng.choice(("com.microsoft", "x", "ai.onnx.ml"))
    elif act == 2:
        node.attribute.append(helper.make_attribute("pads", [rng.choice((-1, 2**31, 2**62))] * 4))
    elif act == 3 and node.input:
        node.input[rng.randrange(len(node.input))] = rng.choice(("", "y", "nothing", "x"))
    else:
        node.name = node.output[0] = rng.choice(WORDS).replace("\ud800", "?")


def _bomb(model: onnx.ModelProto, rng: Random) -> None:
    """A few bytes that ask for gigabytes, or for hours."""
    edge = rng.choice((20_000, 100_000, 2**31))
    shape = helper.make_tensor("bomb_shape", TensorProto.INT64, [2], [edge, edge])
    if rng.random() < 0.6:
        model.graph.initializer.append(shape)
        model.graph.node.append(helper.make_node("ConstantOfShape", ["bomb_shape"], ["bomb"]))
        model.graph.node.append(helper.make_node("ReduceSum", ["bomb"], ["bombed"]))
        model.graph.output.append(helper.make_tensor_value_info("bombed", TensorProto.FLOAT, None))
        return
    names = {"i": TensorProto.INT64, "go": TensorProto.BOOL, "sum": TensorProto.INT64}
    ports = [helper.make_tensor_value_info(name, kind, []) for name, kind in names.items()]
    body = helper.make_graph([helper.make_node("Add", ["i", "sum"], ["more"])], "body", ports,
        [ports[1], helper.make_tensor_value_info("more", TensorProto.INT64, [])],
    )  # fmt: skip
    body.node.append(helper.make_node("Identity", ["go"], ["on"]))
    body.output[0].name = "on"
    model.graph.initializer.append(helper.make_tensor("trips", TensorProto.INT64, [], [2**62]))
    loop = helper.make_node("Loop", ["trips", "", "trips"], ["looped"], body=body)
    model.graph.node.append(loop)
    model.graph.output.append(helper.make_tensor_value_info("looped", TensorProto.INT64, []))


def _version(model: onnx.ModelProto, rng: Random) -> None:
    if rng.random() < 0.5:
        model.ir_version = rng.choice((0, 1, 99, 2**62))
    else:
        model.opset_import[0].version = rng.choice((0, 1, 7, 99, -1))


_GRAPHS: tuple[Callable[[onnx.ModelProto, Random], None], ...] = (
    _external, _external, _shape, _type, _weight, _node, _bomb, _version,
)  # fmt: skip


def break_image(path: Path, rng: Random) -> None:
    """The bytes of an image, or one that unpacks to gigabytes."""
    if rng.random() < 0.8:
        break_bytes(path, rng)
        return
    edge = rng.choice((12_000, 20_000, 60_000, 2**31 - 1))
    header = struct.pack(
        ">IIBBBBB", edge, edge, rng.choice((1, 8, 16)), rng.choice((0, 2)), 0, 0, 0
    )
    rows = zlib.compress(bytes(1 << 20), 9)
    parts = [(b"IHDR", header), (b"IDAT", rows), (b"IEND", b"")]
    if rng.random() < 0.3:
        parts.insert(1, (b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 27), 9)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts))


def _chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
