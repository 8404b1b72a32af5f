"""Mutated files of every kind that lpjax reads: each is loaded, or refused in a sentence; nothing else happens.

    python -m experiments.fuzz --seed 1 --count 2000 --out experiments/results/fuzz.json --failures FOLDER

The files are those of tests/goldens, and side files that lpjax itself writes for them. Each round damages one file in
one to three places and hands it to the command line, in this process, or to the reader that the command would call.
Counted are: loaded, refused (ValueError, OSError, or exit status 1 or 2 with one `error:`), faults (any other
exception, or the line that a fault inside lpjax has), hangs (more than 20 seconds) and memory (2 GB more than before).
The files of faults, hangs and memory are kept in FOLDER.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import lpjax
from lpjax import cli
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax._tree import leaves_with_paths, replace_leaves
from lpjax.compression import break_even_document, load_plan, read_break_even, save_plan
from lpjax.compression.plan import Choice, Plan
from lpjax.compression.record import record_files
from lpjax.data.batching import tokenize
from lpjax.data.tokenizer import load_tokenizer
from lpjax.glue.data import load_examples, load_sentences
from lpjax.models import device_params
from lpjax.training.snapshot import Log, load_state, save_state
from lpjax.training.step import begin, make_optimizer
from lpjax.weighting import load_calibration, save_calibration
from lpjax.weighting.statistics import Calibration, Statistics
from lpjax.weights.low_rank import LowRank, is_lowrank
from lpjax.weights.quantized import Quantized

GOLDENS = Path(__file__).parents[1] / "tests" / "goldens"
SECONDS, BYTES = 20, 2 << 30
TABLE = "embeddings/word_embeddings/embedding"
Reader = Callable[[Path], Any]


class Case(NamedTuple):
    """A kind of file.

    Attributes:
        kind: what it is called.
        folder: whose copy is damaged.
        file: which file of it.
        read: called with the folder.
    """

    kind: str
    folder: Path
    file: str
    read: Reader


class Hang(BaseException):
    """A reader took too long."""


def main() -> None:
    """Fuzz, and write the counts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--failures", type=Path, default=Path(tempfile.gettempdir()) / "lpjax-fuzz")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        counts = fuzz(Path(place), options.seed, options.count, options.failures, say=True)
    total = sum((Counter(outcomes) for outcomes in counts.values()), Counter())
    document = {
        "seed": options.seed,
        "count": options.count,
        "total": dict(total),
        "kinds": counts,
        "seconds": round(time.perf_counter() - began, 1),
    }
    print(json.dumps(document["total"]))
    if options.out is not None:
        write_json(options.out, document | run_record(options.seed))
    sys.exit(any(total[name] for name in ("fault", "hang", "memory")))


def fuzz(place: Path, seed: int, count: int, failures: Path, *, say: bool = False) -> dict[str, dict[str, int]]:
    """Counts of outcomes, kind by kind, of `count` files; a file that is neither loaded nor refused is kept."""
    cases = make_cases(place)
    random_ = random.Random(seed)
    counts: dict[str, Counter[str]] = {case.kind: Counter() for case in cases}
    pool = [(case.folder / case.file).read_bytes() for case in cases]
    for number in range(count):
        case = cases[number % len(cases)]
        broken = place / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(case.folder, broken, symlinks=True)
        path = broken / case.file
        content = path.read_bytes()
        path.unlink()
        is_special = random_.random() < 0.02
        if is_special:
            make_special(path, random_)
        else:
            path.write_bytes(mutated(content, random_, pool))
        outcome, detail = run(case.read, broken)
        counts[case.kind][outcome] += 1
        if outcome not in ("loaded", "refused"):
            kept = failures / f"{seed}-{number}"
            shutil.rmtree(kept, ignore_errors=True)
            if not is_special:
                shutil.copytree(broken, kept, symlinks=True)
            if say:
                print(f"{number} {case.kind} {case.file}: {outcome}: {detail}; kept in {kept}", flush=True)
        if say and number % 200 == 199:
            print(f"{number + 1} files", file=sys.stderr, flush=True)
    return {kind: dict(outcomes) for kind, outcomes in counts.items()}


def run(read: Reader, folder: Path) -> tuple[str, str]:
    """The outcome of a reader (loaded, refused, fault, hang or memory) and its message."""

    def stop(*_: object) -> None:
        raise Hang

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    message, outcome = "", "loaded"
    try:
        read(folder)
    except (ValueError, OSError) as error:
        outcome, message = "refused", str(error)
    except Hang:
        outcome = "hang"
    except Exception as error:
        outcome, message = "fault", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return ("memory" if grown > BYTES else outcome), message[:300]


def command(*arguments: str) -> Reader:
    """A command line whose argument FOLDER is the folder; refused is a ValueError, a fault an AssertionError."""

    def read(folder: Path) -> None:
        out, err = io.StringIO(), io.StringIO()
        before = sys.argv
        sys.argv = ["lpjax", *(argument.replace("FOLDER", str(folder)) for argument in arguments)]
        status: object = 0
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                cli.main()
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            sys.argv = before
        stderr = err.getvalue()
        if cli.INTERNAL in stderr or "Traceback" in stderr or status not in (0, 1, 2):
            raise AssertionError(stderr or str(status))
        if status:
            if "error:" not in stderr:
                raise AssertionError(f"status {status} without a word: {stderr}")
            raise ValueError(stderr)

    return read


# What is damaged


def make_cases(place: Path) -> list[Case]:
    """Folders of good files in `place`, and the reader of each file."""
    place.mkdir(exist_ok=True)
    small, flax, sides, rounded = place / "small", place / "flax", place / "sides", place / "rounded"
    dense = _dense(place / "dense")
    checkpoint = lpjax.load_checkpoint(dense)
    params, records = lpjax.compress(checkpoint.params, select="embeddings", keep=0.6, solver="svd")
    smaller = lpjax.Checkpoint(params, checkpoint.config, dense, {"method": "svd", "p": 2.0}, checkpoint.config_json)
    recovery = {"curve": [{"step": 0, "divergence": 0.2}, {"step": 5, "divergence": 0.1}], "texts": 9, "held_out": 2}
    tuned = {"task": "sst2", "train": {"rows": 9}, "best": {"step": 3}}
    texts = {
        "recover.json": json.dumps(
            recovery | {"best": recovery["curve"][1], "earlier": recovery | {"best": recovery["curve"][1]}}
        ),
        "finetune.json": json.dumps(tuned),
    }
    record = record_files(checkpoint, params, records, model="net", method="svd", p=2.0, keep=0.6)
    lpjax.save_checkpoint(smaller, small, extra_files=record | texts)
    lpjax.export_checkpoint(checkpoint, flax, format="msgpack")
    lpjax.save_checkpoint(dataclasses.replace(checkpoint, params=_rounded(params)), rounded)
    _write_sides(sides, checkpoint, records)
    weights = next(path.name for path in small.iterdir() if path.suffix == ".safetensors")
    report = command("report", "FOLDER", "--out", str(place / "page.html"), "--force")
    export = command("export", "FOLDER", str(place / "exported"), "--force")
    cases = [
        Case("weights, dense", dense, "model.safetensors", export),
        Case("weights, factored", small, weights, report),
        Case("weights, quantized", rounded, "lpjax.safetensors", export),
        Case("config, quantized", rounded, "config.json", export),
        Case("weights, flax", flax, "flax_model.msgpack", export),
        Case("config, dense", dense, "config.json", export),
        Case("config, factored", small, "config.json", report),
        Case("record", small, "lpjax_record.json", report),
        Case("recover.json", small, "recover.json", report),
        Case("finetune.json", small, "finetune.json", export),
        Case(
            "results",
            sides,
            "results.json",
            command("report", "FOLDER/results.json", "--out", str(place / "p.html"), "--force"),
        ),
        Case(
            "results",
            sides,
            "cells.jsonl",
            command("report", "FOLDER/cells.jsonl", "--out", str(place / "p.html"), "--force"),
        ),
        Case("plan", sides, "plan.json", lambda folder: load_plan(folder / "plan.json")),
        Case("calibration", sides, "c.safetensors", lambda folder: load_calibration(folder / "c.safetensors")),
        Case("break-even", sides, "bench.json", _read_bench),
        Case("snapshot", sides, "snapshot", _snapshot_reader(sides, checkpoint)),
        Case("text", sides, "text.txt", lambda folder: load_sentences(folder / "text.txt")),
        Case("GLUE tsv", sides, "SST-2/part.tsv", lambda folder: load_examples("sst2", "part", folder)),
        Case("GLUE jsonl", sides, "RTE/part.jsonl", lambda folder: load_examples("rte", "part", folder)),
    ]
    cases += [Case("tokenizer", dense, name, _tokenize) for name in ("vocab.txt", "tokenizer_config.json")]
    stages = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling/config.json")
    return cases + [Case("sentence-transformers", dense, name, _embed) for name in stages]


def _dense(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(GOLDENS / "bert_base" / name, folder / name)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
    (folder / "vocab.txt").write_text("\n".join(words))
    (folder / "1_Pooling").mkdir()
    stages = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    hidden = json.loads((folder / "config.json").read_text())["hidden_size"]
    contents = {
        "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 16},
        "modules.json": stages,
        "sentence_bert_config.json": {"max_seq_length": 16, "do_lower_case": False},
        "config_sentence_transformers.json": {"prompts": {"query": "a "}, "default_prompt_name": None},
        "1_Pooling/config.json": {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True},
    }
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def _rounded(params: Any) -> Any:
    """`params` with its factors and kernels in whole numbers."""

    def quantize(array: Any) -> Any:
        scales = np.abs(array).max(axis=1, keepdims=True) / 7
        codes = np.round(np.asarray(array) / scales).astype(int)
        return Quantized.from_codes(codes, scales, np.ones(codes.shape[1]), axis=1)

    leaves = dict(leaves_with_paths(params))
    new = {path: quantize(leaf) for path, leaf in leaves.items() if path.endswith("kernel")}
    new |= {
        path: LowRank(quantize(leaf.left), quantize(leaf.right)) for path, leaf in leaves.items() if is_lowrank(leaf)
    }
    return replace_leaves(params, new)


def _write_sides(folder: Path, checkpoint: lpjax.Checkpoint, records: Any) -> None:
    for name in ("", "SST-2", "RTE"):
        (folder / name).mkdir()
    ones = np.ones(3, np.float32)
    statistics = {"a/kernel": Statistics(4, np.eye(3), ones, ones, np.eye(3)), TABLE: Statistics(4, counts=ones)}
    save_calibration(Calibration(statistics, "embedding", 2, 4, 0, {"model": "net"}), folder / "c.safetensors")
    plan = Plan({TABLE: Choice(4, "lewis", 1.5, 0.1), "b/kernel": Choice(None)}, "drone", 0.5, "parameters", "error")
    save_plan(plan, folder / "plan.json")
    timing = lpjax.BreakEven(64, (_timing(),))
    write_json(folder / "bench.json", break_even_document("net", timing, 0))
    row = {"layers": "embeddings", "compression": 0.3, "method": "svd", "p": 2, "score": 0.8, "seconds": 1.5}
    write_json(folder / "results.json", {"rows": [row, row], "score": "Spearman", "dense": 0.9, **run_record(0)})
    (folder / "cells.jsonl").write_text("".join(json.dumps(row | {"net": n, "dense": 0.9}) + "\n" for n in "ab"))
    (folder / "text.txt").write_text("".join(f"{word} a b c\n" for word in "defghij"), encoding="utf-8")
    (folder / "SST-2" / "part.tsv").write_text("sentence\tlabel\n" + "".join(f"a {i}\t{i % 2}\n" for i in range(9)))
    lines = [json.dumps({"sentence1": f"a {i}", "sentence2": "b", "label": i % 2}) for i in range(9)]
    (folder / "RTE" / "part.jsonl").write_text("\n".join(lines))
    del checkpoint, records


def _timing() -> Any:
    from lpjax.compression.latency import LayerTiming

    return LayerTiming((29, 12), True, 1e-4, (1, 4, 8), (0.5, 0.9, 1.2))


def _read_bench(folder: Path) -> None:
    break_even = read_break_even(folder / "bench.json")
    for timing in break_even.timings:
        break_even.added_seconds(TABLE, timing.shape, 3)


def _snapshot_reader(folder: Path, checkpoint: lpjax.Checkpoint) -> Reader:
    params = device_params(checkpoint.params)
    state = begin(params, make_optimizer(0.01, 1.0, checkpoint.config.no_decay))
    about = {"task": "sst2", "settings": {"seed": 0}}
    save_state(folder / "snapshot", state, params, Log(about))

    def read(broken: Path) -> None:
        load_state(broken / "snapshot", state, params, Log(dict(about)))

    return read


def _tokenize(folder: Path) -> None:
    tokenize(load_tokenizer(folder), lpjax.load_checkpoint(folder).config, ["a b", "c"], max_length=8)


def _embed(folder: Path) -> None:
    from lpjax.evaluation.sentences import embed_sentences

    embed_sentences(lpjax.load_checkpoint(folder), ["a b", "c d"], batch_size=2)


# How it is damaged

_VALUES: list[str] = [
    "null", "true", "false", "0", "-1", "1", "2", "1.5", "-0.0", "1e999", "-1e999", "NaN", "Infinity", "1e308",
    "9" * 400, "9" * 5000, str(2**31), str(2**63), str(-(2**64)), "5e-324", '""', '"a"', '"\\ud800"', '"\\u0000"',
    '"' + "a" * 20000 + '"', '"../../x"', '"/etc/passwd"', '"\x1b[2J"', "[]", "{}", "[[]]", '{"a": {}}', "[null]",
    "[-1]", "[1, 1]", '[""]', "[" * 400 + "]" * 400, "[" * 100_000,
]  # fmt: skip


def mutated(content: bytes, random_: random.Random, pool: list[bytes]) -> bytes:
    """`content` with one to three mutations."""
    for _ in range(random_.choice([1, 1, 1, 2, 3])):
        content = random_.choice(_MUTATIONS)(content, random_, pool)
    return content


def _bytes(content: bytes, random_: random.Random, pool: list[bytes]) -> bytes:
    """Bytes cut, overwritten, inserted, deleted, repeated, or spliced with those of another file."""
    result = bytearray(content)
    at = random_.choice([random_.randrange(len(content) + 1), min(random_.randrange(64), len(content))])
    length = random_.choice([1, 2, 8, 40, 1000])
    other = random_.choice(pool)
    match random_.choice(["cut", "byte", "bit", "insert", "delete", "repeat", "splice", "whole", "zeros", "empty"]):
        case "cut":
            del result[at:]
        case "byte":
            result[at : at + 1] = bytes([random_.choice([0, 1, 0x7F, 0x80, 0xC6, 0xDF, 0xFF, random_.randrange(256)])])
        case "bit" if at < len(result):
            result[at] ^= 1 << random_.randrange(8)
        case "insert":
            result[at:at] = random_.randbytes(length)
        case "delete":
            del result[at : at + length]
        case "repeat":
            result[at:at] = result[at : at + length]
        case "splice":
            start = random_.randrange(len(other) + 1)
            result[at : at + length] = other[start : start + length]
        case "whole":
            result = bytearray(other)
        case "zeros":
            result[at : at + length] = bytes(length)
        case "empty" if random_.random() < 0.2:
            result = bytearray()
    return bytes(result)


def _encoding(content: bytes, random_: random.Random, _: list[bytes]) -> bytes:
    """Another encoding, byte order mark, ends of lines, or signs that text does not have."""
    text = content.decode("utf-8", "replace")
    match random_.choice(["bom", "utf-16", "utf-16-le", "utf-32", "latin", "crlf", "cr", "nul", "separator", "escape"]):
        case "bom":
            return b"\xef\xbb\xbf" + content
        case "utf-16" | "utf-16-le" | "utf-32" as name:
            return text.encode(name, "replace")
        case "latin":
            return text.replace("a", "\xe4").encode("latin-1", "replace")
        case "crlf":
            return content.replace(b"\n", b"\r\n")
        case "cr":
            return content.replace(b"\n", b"\r")
        case "nul":
            return content.replace(b"a", b"\0", 1)
        case "separator":
            return text.replace(" ", "\u2028\x85\x0b", 2).encode()
        case _:
            return text.replace("a", "\x1b]0;\x07", 2).encode()


def _value(content: bytes, random_: random.Random, _: list[bytes]) -> bytes:
    """A value of JSON, in the file or in its header, in the place of another; a key left out, doubled, or renamed."""
    tokens = list(_tokens(content))
    if not tokens:
        return content
    start, stop, is_key = random_.choice(tokens)
    if is_key:
        key = content[start:stop]
        return (
            content[:start]
            + random_.choice([b'"other"', key + b": 1, " + key, b'""', b'"__metadata__"'])
            + content[stop:]
        )
    return content[:start] + random_.choice(_VALUES).encode("utf-8", "surrogatepass") + content[stop:]


_TOKEN = re.compile(rb'"(?:[^"\\\x00-\x1f]|\\.){0,200}"|-?[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|true|false|null')


def _tokens(content: bytes) -> Iterator[tuple[int, int, bool]]:
    """(start, stop, whether it is a key) of strings, numbers and names of JSON in the first 64 KiB."""
    for match in _TOKEN.finditer(content[: 1 << 16]):
        after = content[match.end() : match.end() + 2].lstrip()
        yield match.start(), match.end(), match.group().startswith(b'"') and after.startswith(b":")


_MUTATIONS = (_bytes, _bytes, _bytes, _value, _value, _value, _value, _encoding)


def make_special(path: Path, random_: random.Random) -> None:
    """Put something else in the place of a file: nothing, a folder, a pipe, a link to itself or to a device."""
    match random_.choice(["nothing", "folder", "pipe", "loop", "device", "dangling"]):
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "dangling":
            path.symlink_to(path.with_name("not there"))
        case _:
            pass


if __name__ == "__main__":
    main()
