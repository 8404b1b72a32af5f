"""Broken and hostile checkpoints, one a line: how to make it of a good one, and what lpjax has to say of it."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgpack
import numpy as np
from safetensors.numpy import load_file, save_file

SAFE, FLAX, CONFIG = "model.safetensors", "flax_model.msgpack", "config.json"
TABLE = "embeddings/word_embeddings/embedding"


class Hostile(NamedTuple):
    """`damage` turns the folder of a good BERT (tests/goldens/bert_base) into a bad one.

    `message` is what the error says; {} stands for the folder.
    """

    name: str
    damage: Callable[[Path], None]
    message: str


# --- safetensors


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], None]:
    """model.safetensors of this header (bytes, or an object of JSON), data, and length that it claims."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()

    def damage(folder: Path) -> None:
        claimed = struct.pack("<Q", len(text) if length is None else length)
        (folder / SAFE).write_bytes(claimed + text + data)

    return damage


def entry(start: int, stop: int, shape: Any = None, dtype: Any = "F32") -> dict[str, Any]:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def raw(content: bytes, file: str = SAFE) -> Callable[[Path], None]:
    """A file of these bytes."""

    def damage(folder: Path) -> None:
        (folder / file).write_bytes(content)

    return damage


def cut(to: int | None, file: str = SAFE) -> Callable[[Path], None]:
    """A file cut to this many bytes; None for half."""

    def damage(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: len(content) // 2 if to is None else to])

    return damage


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        arrays = {name: array.copy() for name, array in load_file(folder / SAFE).items()}
        change(arrays)
        save_file(arrays, folder / SAFE, metadata={"format": "pt"})

    return damage


def pipe(folder: Path) -> None:
    (folder / SAFE).unlink()
    os.mkfifo(folder / SAFE)


def directory(folder: Path) -> None:
    (folder / SAFE).unlink()
    (folder / SAFE).mkdir()


WHOLE = "{}/model.safetensors is not a whole safetensors file: "
AGAIN = "; fetch or save it again"
BEGINS = WHOLE + "it begins with "


def _set(name: str, index: Any, value: float) -> Callable[[dict[str, np.ndarray]], Any]:
    return lambda tensors: tensors[name].__setitem__(index, value)


SAFETENSORS = [
    Hostile("empty file", raw(b""), WHOLE + "it is empty" + AGAIN),
    Hostile("7 bytes", cut(7), WHOLE + "it has 7 bytes, fewer than the header's length takes" + AGAIN),
    Hostile("a pipe", pipe, WHOLE + "it is not a regular file" + AGAIN),
    Hostile("a folder", directory, WHOLE + "it is not a regular file" + AGAIN),
    Hostile(
        "cut in the header",
        cut(100),
        BEGINS + r"b'0\x0f\x00\x00\x00\x00\x00\x00', which is a header of 3888 bytes, but only 92 follow" + AGAIN,
    ),
    Hostile("cut in the data", cut(None), "query.weight lies at bytes 3408 to 3984, but the file has 3808 bytes"),
    Hostile(
        "wrong magic: a zip",
        raw(b"PK\x03\x04" + b"\0" * 40),
        BEGINS + r"b'PK\x03\x04\x00\x00\x00\x00', which is a header of 67324752 bytes, but only 36 follow" + AGAIN,
    ),
    Hostile(
        "wrong magic: a pickle",
        raw(b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}."),
        BEGINS
        + r"b'\x80\x04\x95\x10\x00\x00\x00\x00', which is a header of 278201472 bytes, but only 5 follow"
        + AGAIN,
    ),
    Hostile(
        "header length of 2⁶³, -2⁶³ to some",
        safetensors({}, length=1 << 63),
        "which is a header of 9223372036854775808 bytes, but only 2 follow" + AGAIN,
    ),
    Hostile(
        "header length of 2⁶⁴ − 1",
        safetensors({}, length=(1 << 64) - 1),
        "which is a header of 18446744073709551615 bytes, but only 2 follow" + AGAIN,
    ),
    Hostile(
        "header length one too long",
        safetensors({}, length=3),
        "which is a header of 3 bytes, but only 2 follow" + AGAIN,
    ),
    Hostile(
        "header length too short",
        safetensors({"a": entry(0, 4)}, b"\0" * 4, length=9),
        WHOLE + "its header is not JSON: ",
    ),
    Hostile(
        "header of 5 MiB",
        safetensors(b" " * (5 << 20)),
        WHOLE + "its header is 5242880 bytes long, expected at most 4194304" + AGAIN,
    ),
    Hostile("header is garbage", safetensors(b"garbage!"), WHOLE + "its header is not JSON: Expecting value: line 1"),
    Hostile("header is not UTF-8", safetensors(b'{"\xff": 1}'), WHOLE + "its header is not JSON: 'utf-8' codec can't"),
    Hostile("header is a list", safetensors([]), WHOLE + "its header is a JSON list, expected an object" + AGAIN),
    Hostile("header is nested deep", safetensors(b"[" * 100_000), WHOLE + "its header is not JSON: it is nested more"),
    Hostile("header holds NaN", safetensors(b'{"a": NaN}'), WHOLE + "its header is not JSON: NaN is not JSON" + AGAIN),
    Hostile(
        "header repeats a tensor",
        safetensors(f'{{"a": {json.dumps(entry(0, 4))}, "a": {json.dumps(entry(0, 4))}}}'.encode(), b"\0" * 4),
        WHOLE + "its header is not JSON: the key 'a' is repeated" + AGAIN,
    ),
    Hostile(
        "header of a million lists",
        safetensors(b'{"a": [' + b"[]," * (1 << 20) + b"[]]}"),
        WHOLE + "a is described by a JSON list, expected an object" + AGAIN,
    ),
    Hostile(
        "tensor is null", safetensors({"a": None}), WHOLE + "a is described by a JSON NoneType, expected an object"
    ),
    Hostile("no dtype", safetensors({"a": {"shape": []}}), WHOLE + "a has no dtype that is a string" + AGAIN),
    Hostile(
        "dtype is a number", safetensors({"a": entry(0, 4, dtype=32)}, b"\0" * 4), "a has no dtype that is a string"
    ),
    Hostile(
        "dtype that is none",
        safetensors({"a": entry(0, 4, dtype="F99")}, b"\0" * 4),
        "{}/model.safetensors holds tensors in a format that lpjax does not read: a (F99)",
    ),
    Hostile(
        "dtype of 8 bits",
        safetensors({"a": entry(0, 4, [4], "F8_E4M3")}, b"\0" * 4),
        "{}/model.safetensors holds tensors in a format that lpjax does not read: a (F8_E4M3)",
    ),
    Hostile(
        "dtype wider than its data",
        safetensors({"a": entry(0, 4, [1], "F64")}, b"\0" * 4),
        WHOLE + "a is [1] of F64, but lies at bytes 0 to 4, 4 in all" + AGAIN,
    ),
    Hostile(
        "weight of integers",
        tensors(lambda t: t.update({"pooler.dense.bias": np.ones(12, np.int32)})),
        "unusable (1): pooler.dense.bias is int32, expected floating-point numbers",
    ),
    *(
        Hostile(
            f"shape is {shape}",
            safetensors({"a": entry(0, 4, shape)}, b"\0" * 4),
            WHOLE + "a has no shape that is a list of at most 8 whole numbers" + AGAIN,
        )
        for shape in ("1", [-1], [1.0], [True], [[1]], [1] * 9)
    ),
    Hostile(
        "shape beyond all memory",
        safetensors({"a": entry(0, 4, [2**62, 2**62])}, b"\0" * 4),
        WHOLE + "a is [4611686018427387904, 4611686018427387904] of F32, but lies at bytes 0 to 4, 4 in all" + AGAIN,
    ),
    Hostile(
        "shape with a zero and 2⁶⁴ − 1",
        safetensors({"a": entry(0, 0, [0, 2**64 - 1])}),
        WHOLE + "a has the shape [0, 18446744073709551615]: ",
    ),
    Hostile(
        "offsets out of range",
        safetensors({"a": entry(0, 4), "b": entry(4, 80)}, b"\0" * 12),
        WHOLE + "b lies at bytes 4 to 80, but the file has 12 bytes of data" + AGAIN,
    ),
    Hostile(
        "offsets of 2⁶³",
        safetensors({"a": entry(2**63, 2**63 + 4)}, b"\0" * 4),
        WHOLE + "a lies at bytes 9223372036854775808 to 9223372036854775812, but the file has 4 bytes of data" + AGAIN,
    ),
    Hostile(
        "offsets negative", safetensors({"a": entry(-4, 0)}, b"\0" * 4), "a lies at bytes -4 to 0, but the file has 4"
    ),
    Hostile(
        "offsets reversed",
        safetensors({"a": entry(4, 0, [1])}, b"\0" * 4),
        "a lies at bytes 4 to 0, but the file has 4",
    ),
    Hostile(
        "offsets are three",
        safetensors({"a": entry(0, 4) | {"data_offsets": [0, 2, 4]}}, b"\0" * 4),
        WHOLE + "a has no data_offsets that are two whole numbers" + AGAIN,
    ),
    Hostile(
        "offsets overlap",
        safetensors({"a": entry(0, 8), "b": entry(4, 12)}, b"\0" * 12),
        WHOLE + "b overlaps a" + AGAIN,
    ),
    Hostile(
        "one place twice", safetensors({"a": entry(0, 4), "b": entry(0, 4)}, b"\0" * 4), WHOLE + "b overlaps a" + AGAIN
    ),
    Hostile(
        "a hole",
        safetensors({"a": entry(0, 4), "b": entry(8, 12)}, b"\0" * 12),
        WHOLE + "bytes 4 to 8, before b, belong to no tensor" + AGAIN,
    ),
    Hostile(
        "a hole at the end",
        safetensors({"a": entry(0, 4)}, b"\0" * 9),
        WHOLE + "its last 5 bytes belong to no tensor" + AGAIN,
    ),
    Hostile(
        "metadata is not an object of strings",
        safetensors({"__metadata__": {"format": 3}, "a": entry(0, 4)}, b"\0" * 4),
        WHOLE + "its __metadata__ is not an object of strings" + AGAIN,
    ),
    Hostile(
        "NaN",
        tensors(_set("pooler.dense.weight", (3, slice(4, 6)), np.nan)),
        "{}/model.safetensors holds NaN or infinite weights: pooler.dense.weight (2 of 144)",
    ),
    Hostile(
        "infinity",
        tensors(_set("embeddings.LayerNorm.bias", -1, -np.inf)),
        "{}/model.safetensors holds NaN or infinite weights: embeddings.LayerNorm.bias (1 of 12)",
    ),
    Hostile(
        "a name that drives the terminal",
        tensors(lambda t: t.update({"\x1b[2Jgone\r": np.ones(3, np.float32)})),
        r"unknown (1): \x1b[2Jgone\r",
    ),
    Hostile(
        "ten thousand unknown names",
        safetensors({f"{'long' * 20}{i}": entry(0, 0) for i in range(10_000)}),
        "unknown (10000): longlong",
    ),
    Hostile(
        "Flax paths that lead through an array",
        safetensors(
            {"__metadata__": {"format": "flax"}, "embeddings": entry(0, 4), "embeddings.LayerNorm.bias": entry(4, 8)},
            b"\0" * 8,
        ),
        "{}/model.safetensors holds no tree: embeddings.LayerNorm.bias leads through another array",
    ),
    Hostile(
        "a Flax path of 100 000 keys",
        safetensors({"__metadata__": {"format": "flax"}, "a." * 100_000: entry(0, 0)}),
        "{}/model.safetensors holds no tree: a.a.",
    ),
]

# --- shards


def shard(folder: Path) -> dict[str, str]:
    """Split model.safetensors in two, with an index; return its map."""
    arrays = load_file(folder / SAFE)
    names, index = sorted(arrays), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: arrays[name].copy() for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / SAFE).unlink()
    (folder / f"{SAFE}.index.json").write_text(json.dumps({"weight_map": index}))
    return index


def index(**change: Any) -> Callable[[Path], None]:
    """Shards whose index has these entries besides; a dot in a name is written as two underscores."""

    def damage(folder: Path) -> None:
        names = shard(folder) | {key.replace("__", "."): value for key, value in change.items()}
        (folder / f"{SAFE}.index.json").write_text(json.dumps({"weight_map": names}))

    return damage


def raw_index(content: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shard(folder)
        (folder / f"{SAFE}.index.json").write_bytes(content)

    return damage


def lost_shard(folder: Path) -> None:
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def dangling_shard(folder: Path) -> None:
    lost_shard(folder)
    (folder / "model-00002-of-00002.safetensors").symlink_to("blobs/no-such-file")


def damaged_shard(folder: Path) -> None:
    shard(folder)
    cut(5, "model-00002-of-00002.safetensors")(folder)


INDEX = "{}/model.safetensors.index.json "
SHARDS = [
    *(
        Hostile(
            f"shard {name!r}",
            index(pooler__dense__bias=name),
            INDEX + f"names the shard {name!r} for pooler.dense.bias, expected a .safetensors file beside it",
        )
        for name in (
            "../other/model.safetensors",
            "/etc/model.safetensors",
            "sub/model.safetensors",
            "..\\model.safetensors",
            "pytorch_model.bin",
            "..",
            "",
        )
    ),
    Hostile(
        "missing shard", lost_shard, INDEX + "names shards that are not there: model-00002-of-00002.safetensors (for "
    ),
    Hostile("link to nowhere", dangling_shard, INDEX + "names shards that are not there: model-00002-of-00002.safeten"),
    Hostile(
        "shard with a NUL",
        index(pooler__dense__bias="model\0.safetensors"),
        INDEX + r"names shards that are not there: model\x00.safetensors (for pooler.dense.bias)",
    ),
    Hostile(
        "damaged shard", damaged_shard, "{}/model-00002-of-00002.safetensors is not a whole safetensors file: it has 5"
    ),
    Hostile(
        "tensor that the shard has not",
        index(pooler__dense__scale="model-00001-of-00002.safetensors"),
        INDEX + "and model-00001-of-00002.safetensors differ at pooler.dense.scale",
    ),
    Hostile(
        "tensor of another shard",
        index(pooler__dense__bias="model-00001-of-00002.safetensors"),
        INDEX + "and model-00001-of-00002.safetensors differ at pooler.dense.bias",
    ),
    Hostile(
        "shard is a number",
        index(pooler__dense__bias=3),
        INDEX[:-1] + ": `weight_map` is missing or not an object of file names",
    ),
    Hostile("no weight_map", raw_index(b"{}"), INDEX[:-1] + ": `weight_map` is missing or not an object of file names"),
    Hostile("index is not JSON", raw_index(b"{'a': 1}"), INDEX + "cannot be read as JSON: Expecting property name"),
    Hostile(
        "index of 5 MiB",
        raw_index(b" " * (5 << 20)),
        INDEX + "cannot be read as JSON: it is longer than 4194304 bytes",
    ),
]

# --- config.json


def config(**changes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps(data))

    return damage


def no_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


NOT_JSON = "{}/config.json cannot be read as JSON: "
CONFIGS = [
    Hostile("no config", no_config, "{} holds no config.json, so it is not a checkpoint"),
    Hostile("config is cut off", raw(b'{"model_type": "be', CONFIG), NOT_JSON + "Unterminated string"),
    Hostile("config is empty", raw(b"", CONFIG), NOT_JSON + "Expecting value"),
    Hostile("config is binary", raw(b"\xff\xfe\xfd", CONFIG), NOT_JSON + "it is UTF-16 text"),
    Hostile("config is a list", raw(b"[1, 2]", CONFIG), "{}/config.json holds a JSON list, expected an object"),
    Hostile("config is nested deep", raw(b"[" * 100_000, CONFIG), NOT_JSON + "it is nested more than 200 deep"),
    Hostile(
        "config of 5 MiB",
        raw(b'{"model_type": "bert"' + b" " * (5 << 20) + b"}", CONFIG),
        NOT_JSON + "it is longer than 4194304 bytes",
    ),
    Hostile("config is {}", raw(b"{}", CONFIG), "{}/config.json: lacks `model_type`, expected one of 'bert'"),
    Hostile("config of a name only", raw(b'{"model_type": "bert"}', CONFIG), "{}/config.json: lacks `vocab_size`, "),
    Hostile("config holds NaN", raw(b'{"layer_norm_eps": NaN}', CONFIG), NOT_JSON + "NaN is not JSON"),
    Hostile(
        "number of 5000 digits",
        raw(b'{"vocab_size": ' + b"9" * 5000 + b"}", CONFIG),
        NOT_JSON + "Exceeds the limit (4300",
    ),
    Hostile(
        "10⁹ layers",
        config(num_hidden_layers=10**9),
        "{}/config.json: `num_hidden_layers` is 1000000000, expected a whole number from 1 to",
    ),
    Hostile("1000 layers", config(num_hidden_layers=1000), "missing (15968): encoder.layer.2."),
    Hostile(
        "0 layers",
        config(num_hidden_layers=0),
        "`num_hidden_layers` is 0, expected a whole number from 1",
    ),
    Hostile(
        "-1 layers",
        config(num_hidden_layers=-1),
        "`num_hidden_layers` is -1, expected a whole number from 1",
    ),
    Hostile("2.5 layers", config(num_hidden_layers=2.5), "`num_hidden_layers` is 2.5, expected a whole number"),
    Hostile(
        "fewer layers", config(num_hidden_layers=1), "unknown (16): encoder.layer.1.attention.output.LayerNorm.bias"
    ),
    Hostile(
        "vocabulary of 10¹²",
        config(vocab_size=10**12),
        "{}/config.json: `vocab_size` is 1000000000000, expected a whole number from 1 to",
    ),
    Hostile(
        "vocabulary of 10⁹",
        config(vocab_size=10**9),
        "mis-shaped (1): embeddings.word_embeddings.weight is (29, 12), expected (1000000000, 12)",
    ),
    Hostile(
        "hidden size of 1.2·10⁹",
        config(hidden_size=1_200_000_000),
        "embeddings.word_embeddings.weight is (29, 12), expected (29, 1200000000)",
    ),
    Hostile("intermediate size of 1", config(intermediate_size=1), "expected (1, 12)"),
    Hostile("sizes as text", config(hidden_size="12"), "`hidden_size` is '12', expected a whole number"),
    Hostile(
        "another model", config(model_type="gpt2"), "{}/config.json: `model_type` is 'gpt2', expected one of 'bert'"
    ),
    Hostile(
        "model type is a list", config(model_type=["bert"]), "{}/config.json: `model_type` is ['bert'], expected one of"
    ),
]

# --- msgpack


def array(values: Any, shape: Any = None, dtype: Any = None, data: Any = None) -> msgpack.ExtType:
    """An array as flax packs it, or one whose shape, dtype or bytes lie."""
    values = np.asarray(values)
    triple = (
        values.shape if shape is None else shape,
        values.dtype.name if dtype is None else dtype,
        values.tobytes() if data is None else data,
    )
    return msgpack.ExtType(1, msgpack.packb(triple))


def flax_leaves(path: Path) -> dict[str, np.ndarray]:
    """The weights of a BERT in safetensors, by their paths in a Flax tree."""
    renamed = {}
    for name, tensor in load_file(path).items():
        stem, last = name.rsplit(".", 1)
        if last == "weight":
            last = "scale" if "LayerNorm" in stem else "embedding" if "embeddings" in stem else "kernel"
        renamed[f"{stem}.{last}".replace(".", "/")] = tensor.T if last == "kernel" else tensor
    return renamed


def flat(folder: Path) -> dict[str, np.ndarray]:
    """The leaves of the good checkpoint, whose safetensors are removed."""
    leaves = flax_leaves(folder / SAFE)
    (folder / SAFE).unlink()
    return leaves


def put(tree: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.split("/")
    for key in parents:
        tree = tree.setdefault(key, {})
    tree[last] = value


def packed(leaves: dict[str, Any]) -> bytes:
    tree: dict[str, Any] = {}
    for path, value in leaves.items():
        put(tree, path, array(value) if isinstance(value, np.ndarray) else value)
    return cast(bytes, msgpack.packb(tree))


def leaf(value: Any, path: str = TABLE) -> Callable[[Path], None]:
    """flax_model.msgpack with `value` at `path`."""

    def damage(folder: Path) -> None:
        content = packed(flat(folder) | {path: value})
        (folder / FLAX).write_bytes(content)

    return damage


def tree_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """flax_model.msgpack with its bytes changed."""

    def damage(folder: Path) -> None:
        content = packed(flat(folder))
        (folder / FLAX).write_bytes(change(content))

    return damage


def flax_file(content: bytes) -> Callable[[Path], None]:
    return tree_bytes(lambda _: content)


def chunked(**changes: Any) -> msgpack.ExtType | dict[str, Any]:
    pieces = {"0": array(np.ones(200, np.float32)), "1": array(np.ones(148, np.float32))}
    return {"__msgpack_chunked_array__": True, "shape": {"0": 29, "1": 12}, "chunks": pieces} | changes


def flax_shards(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        leaves = flat(folder)
        (folder / "flax_model-00001-of-00001.msgpack").write_bytes(packed(leaves))
        weight_map: dict[str, Any] = dict.fromkeys(leaves, "flax_model-00001-of-00001.msgpack")
        change(weight_map)
        (folder / f"{FLAX}.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


TREE = "{}/flax_model.msgpack is not a whole flax msgpack file: "
NO_CHUNKS = f"{TABLE} is not an array in chunks: it lacks a shape or flat chunks of one dtype"
ONE = np.ones(3, np.float32)
MSGPACKS = [
    Hostile("empty msgpack", flax_file(b""), TREE + "it is empty" + AGAIN),
    Hostile("cut in an array", tree_bytes(lambda b: b[: len(b) // 2]), " bytes, but only "),
    Hostile(
        "cut in a key",
        flax_file(b"\x81\xa9abc"),
        TREE + "the outermost map is cut off: the file ends at byte 5" + AGAIN,
    ),
    Hostile("cut before a value", flax_file(b"\x81\xa1a"), TREE + "a is cut off: the file ends at byte 3" + AGAIN),
    Hostile("cut in a length", flax_file(b"\x81\xa1a\xc9\0\0"), TREE + "a is cut off: the file ends at byte 6" + AGAIN),
    Hostile(
        "wrong magic: a zip",
        flax_file(b"PK\x03\x04" + b"\0" * 9),
        TREE + r"it begins with b'PK\x03\x04\x00\x00\x00\x00', expected a map",
    ),
    Hostile("wrong magic: a pickle", flax_file(b"\x80\x04\x95\x10}."), TREE + "5 bytes follow its end" + AGAIN),
    Hostile("bytes after the end", tree_bytes(lambda b: b + b"\0" * 3), TREE + "3 bytes follow its end" + AGAIN),
    Hostile(
        "a byte that begins nothing", flax_file(b"\x81\xa1a\xc1"), TREE + "a is a byte 0xc1, expected an array or a map"
    ),
    Hostile(
        "bomb: 100 000 maps, one in the other",
        flax_file(b"\x81\xa1a" * 100_000),
        TREE + "/".join("a" * 32) + " is nested 32 deep, expected less than 32" + AGAIN,
    ),
    Hostile(
        "bomb: 100 000 lists",
        flax_file(b"\x81\xa1a" + b"\x91" * 100_000),
        TREE + "a is a list, expected an array or a map",
    ),
    Hostile(
        "bomb: map of 2³² − 1 keys",
        flax_file(b"\xdf\xff\xff\xff\xff\xa1a"),
        TREE + "the outermost map claims 4294967295 keys, but only 2 bytes follow" + AGAIN,
    ),
    Hostile(
        "bomb: list of 2³² − 1",
        flax_file(b"\x81\xa1a\xdd\xff\xff\xff\xff"),
        TREE + "a is a list, expected an array or a map",
    ),
    Hostile(
        "bomb: array of 4 GiB",
        flax_file(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93"),
        TREE + "a claims 4294967295 bytes, but only 1 follow" + AGAIN,
    ),
    Hostile(
        "bomb: key of 4 GiB",
        flax_file(b"\x81\xdb\xff\xff\xff\xffab"),
        TREE + "the outermost map has a key of 4294967295 bytes, expected at most 256" + AGAIN,
    ),
    Hostile(
        "bomb: 200 000 empty maps",
        flax_file(msgpack.packb({f"{i}": {str(j): {} for j in range(1000)} for i in range(200)})),
        TREE + "32 brings the keys to 33200, expected at most 32768" + AGAIN,
    ),
    Hostile(
        "bomb: shape of 2³² − 1 sizes",
        flax_file(b"\x81\xa1a\xc7\x06\x01\x93\xdd\xff\xff\xff\xff"),
        TREE + "a has a shape of 4294967295 numbers, expected a list of at most 8" + AGAIN,
    ),
    Hostile(
        "key of 300 letters",
        flax_file(msgpack.packb({"k" * 300: {}})),
        TREE + "the outermost map has a key of 300 bytes, expected at most 256" + AGAIN,
    ),
    Hostile(
        "key is a number",
        flax_file(msgpack.packb({3: {}})),
        "the outermost map has a key that is a whole number, expected a",
    ),
    Hostile("key is a list", flax_file(b"\x81\x91\x01\x80"), "the outermost map has a key that is a list, expected"),
    Hostile(
        "key with a slash",
        flax_file(msgpack.packb({"a": {"b/c": {}}})),
        TREE + "a has the key 'b/c', expected a name without",
    ),
    Hostile(
        "key is not UTF-8",
        flax_file(b"\x81\xa1\xff\x80"),
        TREE + "the outermost map has a key that is not UTF-8: ",
    ),
    Hostile("key twice", flax_file(b"\x82\xa1a\x80\xa1a\x80"), TREE + "a appears twice" + AGAIN),
    *(
        Hostile(f"value is {what}", leaf(value), TREE + f"{TABLE} is {description}, expected an array or a map" + AGAIN)
        for what, value, description in (
            ("nil", None, "a nil"),
            ("text", "text", "a string"),
            ("bytes", b"bytes", "a byte string"),
            ("a list", [1.0, 2.0], "a list"),
            ("a float", 1.5, "a float"),
            ("a number", 7, "7"),
            ("true", True, "True"),
        )
    ),
    Hostile(
        "complex", leaf(msgpack.ExtType(2, b"\x92\x01\x02")), TREE + f"{TABLE} is a complex number, expected an array"
    ),
    Hostile(
        "extension of type 5",
        leaf(msgpack.ExtType(5, b"abc")),
        TREE + f"{TABLE} is an extension of type 5, expected an",
    ),
    Hostile(
        "a time", leaf(msgpack.Timestamp(1)), TREE + f"{TABLE} is an extension of type -1, expected an array" + AGAIN
    ),
    Hostile("array of nothing", leaf(msgpack.ExtType(1, b"")), f"{TABLE} "),
    Hostile(
        "array of two",
        leaf(msgpack.ExtType(1, b"\x92\x90\xa1a")),
        TREE + f"{TABLE} is not a list of shape, dtype and bytes" + AGAIN,
    ),
    Hostile(
        "array without bytes",
        leaf(msgpack.ExtType(1, msgpack.packb([[3], "float32", "text"]))),
        TREE + f"{TABLE} has a string after its dtype, where 4 bytes are left for it" + AGAIN,
    ),
    Hostile(
        "bytes beyond the array's end",
        leaf(msgpack.ExtType(1, b"\x93\x91\x03\xa7float32\xc6\x00\x00\x10\x00abcd")),
        TREE + f"{TABLE} has 4096 bytes after its dtype, where 4 bytes are left for it" + AGAIN,
    ),
    Hostile(
        "shape too large",
        leaf(array(ONE, [29, 12])),
        TREE + f"{TABLE} is (29, 12) of float32, but has 12 bytes" + AGAIN,
    ),
    Hostile("shape too small", leaf(array(ONE, [2])), TREE + f"{TABLE} is (2,) of float32, but has 12 bytes" + AGAIN),
    Hostile(
        "shape beyond all memory",
        leaf(array(ONE, [2**63, 2**63])),
        TREE + f"{TABLE} is (9223372036854775808, 9223372036854775808) of float32, but has 12 bytes" + AGAIN,
    ),
    Hostile(
        "shape with a zero and 2⁶⁴ − 1",
        leaf(array(ONE[:0], [0, 2**64 - 1])),
        TREE + f"{TABLE} has the shape (0, 18446744073709551615): ",
    ),
    *(
        Hostile(
            f"shape is {shape}",
            leaf(array(ONE, shape)),
            TREE + f"{TABLE} has the shape {tuple(shape)}, expected whole num",
        )
        for shape in ([-3], [3.0], [True, 3])
    ),
    Hostile(
        "shape of 9",
        leaf(array(ONE, [1] * 8 + [3])),
        f"{TABLE} has a shape of 9 numbers, expected a list of at most 8",
    ),
    Hostile(
        "shape is a number",
        leaf(array(ONE, 3)),
        f"{TABLE} has a shape of a whole number, expected a list",
    ),
    *(
        Hostile(
            f"dtype {dtype!r}",
            leaf(array(ONE, dtype=dtype)),
            TREE + f"{TABLE} is of dtype {dtype!r}, expected one of float64, float32, float16, bfloat16, int64",
        )
        for dtype in ("object", "O", "complex64", "<U3", "datetime64[s]", ">f4", "float8_e4m3fn", "f4,f4", "")
    ),
    Hostile("dtype is a number", leaf(array(ONE, dtype=3)), f"{TABLE} has a dtype that is a whole number, expected a"),
    Hostile(
        "dtype of 300 letters",
        leaf(array(ONE, dtype="f" * 300)),
        f"{TABLE} has a dtype of 300 bytes, expected at",
    ),
    Hostile(
        "weight of integers",
        leaf(array(np.ones((29, 12), np.int32))),
        f"unusable (1): {TABLE} is int32, expected floating-point numbers",
    ),
    Hostile(
        "scalar",
        leaf(msgpack.ExtType(3, array(np.float32(1)).data)),
        f"mis-shaped (1): {TABLE} is (), expected (29, 12)",
    ),
    Hostile("chunks without a shape", leaf(chunked(shape={})), f"{TABLE} is (), but its chunks hold 348 numbers"),
    Hostile("chunks are none", leaf(chunked(chunks={})), TREE + NO_CHUNKS + AGAIN),
    Hostile("chunks without a first", leaf(chunked(chunks={"1": array(ONE)})), TREE + NO_CHUNKS + AGAIN),
    Hostile(
        "chunks of two dtypes",
        leaf(chunked(chunks={"0": array(np.ones(200, np.float32)), "1": array(np.ones(148, np.float16))})),
        TREE + NO_CHUNKS + AGAIN,
    ),
    Hostile("chunk is a matrix", leaf(chunked(chunks={"0": array(np.ones((29, 12)))})), TREE + NO_CHUNKS + AGAIN),
    Hostile("chunks and something else", leaf(chunked(more=1)), TREE + NO_CHUNKS + AGAIN),
    Hostile(
        "chunks too few",
        leaf(chunked(shape={"0": 30, "1": 12})),
        TREE + f"{TABLE} is (30, 12), but its chunks hold 348 numb",
    ),
    Hostile("chunks of shape -1", leaf(chunked(shape={"0": -1})), TREE + NO_CHUNKS + AGAIN),
    Hostile(
        "NaN in msgpack",
        leaf(array(np.full((29, 12), np.nan, np.float32))),
        "{}/flax_model.msgpack holds NaN or infinite weights: " + f"{TABLE} (348 of 348)",
    ),
    Hostile(
        "a tree that does not fit",
        leaf(array(ONE), "embeddings/LayerNorm/gamma"),
        "{}/flax_model.msgpack does not fit the bert of {}/config.json:\n  unknown (1): embeddings/LayerNorm/gamma",
    ),
    Hostile("an array for a map", leaf(array(ONE), "encoder"), "unknown (1): encoder"),
    Hostile(
        "Flax shard outside",
        flax_shards(lambda names: names.update({TABLE: "../flax_model.msgpack"})),
        "{}/flax_model.msgpack.index.json names the shard '../flax_model.msgpack' for "
        f"{TABLE}, expected a .msgpack file beside it",
    ),
    Hostile(
        "Flax shard that is not there",
        flax_shards(lambda names: names.update({TABLE: "flax_model-2.msgpack"})),
        "{}/flax_model.msgpack.index.json names shards that are not there: flax_model-2.msgpack " + f"(for {TABLE})",
    ),
    Hostile(
        "Flax shard with less than listed",
        flax_shards(lambda names: names.update({"more": names[TABLE]})),
        "{}/flax_model.msgpack.index.json and flax_model-00001-of-00001.msgpack differ at more",
    ),
]

# --- other formats


def only(file: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / SAFE).unlink()
        (folder / "pytorch_model.bin").unlink()
        if file:
            (folder / file).write_bytes(b"\x80\x04.")

    return damage


OTHERS = [
    *(
        Hostile(f"only {file}", only(file), "{} holds only " + f"{file}, a pickle, which may run code; with PyTorch")
        for file in ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.ckpt")
    ),
    *(
        Hostile(
            f"only {file}", only(file), "{} holds only " + f"{file}, expected model.safetensors or flax_model.msgpack; "
        )
        for file in ("tf_model.h5", "model.onnx")
    ),
    Hostile(
        "no weights", only(""), "{} holds no model.safetensors and no flax_model.msgpack; if the model has them in"
    ),
]

HOSTILE = [
    case._replace(name=f"{group}, {case.name}")
    for group, cases in (
        ("safetensors", SAFETENSORS),
        ("shards", SHARDS),
        ("config.json", CONFIGS),
        ("msgpack", MSGPACKS),
        ("folder", OTHERS),
    )
    for case in cases
]
