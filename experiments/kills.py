"""Kill every writing command at every file-system event, by SIGTERM and SIGKILL: `python -m experiments.kills`.

Makes a tiny net and texts in a temporary folder. Each command runs once to its end, and then once for each point at
which it is killed: before each file-system event that Python's audit hooks tell of (a file opened for writing, mkdir,
rename, remove, …), before each fsync, and after each step that moves the progress bar. Every run is a process of its
own, forked from one that has imported all of lpjax and run nothing; the signals are real ones, and so are the files.

After each kill, OUT must be the old one or the new one, whole. After SIGTERM nothing may lie beside it but the snapshot
of a run that trains; after SIGKILL nothing once the command ran again, with --resume if it trains. And that run must
end with what one writes that was never killed, weights bit for bit. Kills that leave the same files, as those between
two updates do, share the run that follows. Written to experiments/results/kills.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import faulthandler
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments.full_size import random_params
from experiments.readme import kills_table
from lpjax import Checkpoint, load_checkpoint, save_checkpoint
from lpjax._files.json import write_json
from lpjax._provenance import run_record
from lpjax.compression import read_break_even
from lpjax.export import RUNTIMES
from lpjax.models import config_from_json
from lpjax.weighting import load_calibration

RESULTS = Path(__file__).parent / "results" / "kills.json"
SIGNALS = (signal.SIGTERM, signal.SIGKILL)
_LONGEST = 300  # seconds of one run of a command; reached only if it hangs

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "PYTHONWARNINGS": "ignore",
}

_CONFIG = {
    "model_type": "bert", "vocab_size": 31, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 12, "max_position_embeddings": 16, "type_vocab_size": 2, "hidden_act": "gelu",
    "architectures": ["BertModel"],
}  # fmt: skip
_OLD_FILES = {  # of the kinds that --force may replace
    ".json": b'{"schema": "lpjax-break-even/1"}',
    ".png": b"\x89PNG\r\n\x1a\nold",
    ".html": b"<title>old, lpjax report</title>",
}
_LETTERS = "abcdefghijklm"
_TRAINED = ("finetune", "recover")


class Case(NamedTuple):
    """A command to be killed.

    Attributes:
        arguments: of `lpjax`, with {out} for what it writes.
        out: name of that.
        forced: whether there is an OUT before it, which --force replaces.
    """

    arguments: str
    out: str = "out"
    forced: bool = False


_COMPRESS = "compress net {out} --layers embeddings --keep 0.5"
_FINETUNE = (
    "finetune net {out} --task sst2 --glue glue --train-split some --eval-split others --batch-size 4 --epochs 8 "
    "--eval-every 8 --max-length 8 --lr 0.01"
)
_RECOVER = "recover small {out} --text texts.txt --batch-size 4 --max-length 8 --lr 0.003"
CASES = {
    "compress": Case(f"{_COMPRESS} --plan-out plan.json"),
    "compress --force": Case(_COMPRESS, forced=True),
    "export --force": Case("export small {out}", forced=True),
    "export --to flax --force": Case("export small {out} --to flax", forced=True),
    "export --to onnx --force": Case("export small {out} --to onnx", forced=True),
    "export --to stablehlo --force": Case("export small {out} --to stablehlo", forced=True),
    "quantize --force": Case("quantize small {out}", forced=True),
    "calibrate --force": Case(
        "calibrate net {out} --text few.txt --batch-size 1 --max-length 8", "out.safetensors", forced=True
    ),
    "bench --out --force": Case("bench net --layers embeddings --tokens 8 --out {out}", "out.json", forced=True),
    "finetune --force": Case(_FINETUNE, forced=True),
    "recover --force": Case(_RECOVER, forced=True),
    "inspect --plot --force": Case("inspect net --plot {out}", "out.png", forced=True),
    "report --force": Case("report small --out {out}", "out.html", forced=True),
}


def make_inputs(folder: Path) -> None:
    """A dense net with a tokenizer, a compressed one, texts, and a GLUE folder with SST-2."""
    rng = np.random.default_rng(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    source = folder / "tokenizer"
    source.mkdir()
    (source / "vocab.txt").write_text("\n".join(words))
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
    config = config_from_json(_CONFIG)
    params = random_params(config)
    save_checkpoint(Checkpoint(params, config, source=source, config_json=_CONFIG), folder / "net")
    lines = sorted({" ".join(rng.choice(list(_LETTERS), size=1 + i % 5)) for i in range(700)})
    (folder / "texts.txt").write_text("\n".join(lines[:120]) + "\n")
    (folder / "few.txt").write_text("\n".join(lines[:105]) + "\n")
    (folder / "glue" / "SST-2").mkdir(parents=True)
    for split, rows in (("some", 20), ("others", 8)):
        examples = [f"{'ab'[i % 2]} {' '.join(rng.choice(list('cdef'), size=2))}\t{i % 2}" for i in range(rows)]
        (folder / "glue" / "SST-2" / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *examples]) + "\n")


def call(arguments: str, folder: Path) -> int:
    """Run a command line in this process, in `folder`, and return its exit status."""
    from lpjax import cli

    os.chdir(folder)
    before, sys.argv = sys.argv, ["lpjax", *arguments.split()]
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    finally:
        sys.argv = before
    return 0


# Points at which a process can be killed

_EVENTS = ("os.", "shutil.", "lpjax.")
_HARMLESS = {"os.listdir", "os.scandir", "os.walk", "os.fwalk", "os.chdir", "os.putenv", "os.unsetenv", "os.fork",
             "os.getxattr", "os.listxattr", "os.add_dll_directory"}  # fmt: skip


class Points:
    """Counts points in this process, and sends a signal at one of them."""

    def __init__(self, folder: Path, number: int | None, at: int):
        self.folder, self.number, self.at, self.count = f"{folder}{os.sep}", number, at, 0

    def reach(self) -> None:
        """Note that there is a point here."""
        self.count += 1
        if self.number is not None and self.count == self.at:
            os.kill(os.getpid(), self.number)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and isinstance(path, str | os.PathLike) and str(Path(path).absolute()).startswith(self.folder):
                self.reach()
        elif event.startswith(_EVENTS) and event not in _HARMLESS:
            self.reach()

    def install(self) -> None:
        """Have this process, which is a forked one, count its points."""
        sys.addaudithook(self.hook)
        fsync = os.fsync

        def counted(descriptor: int) -> None:
            self.reach()
            fsync(descriptor)

        os.fsync = counted
        for name in ("bench", "_texts", "compress", "finetune", "inspect", "recover", "report"):
            module = importlib.import_module(f"lpjax.cli.{name}")
            vars(module)["progress"] = self._counting(vars(module)["progress"])

    def _counting(self, progress: Callable[[], Any]) -> Callable[[], Any]:
        @contextlib.contextmanager
        def counting() -> Iterator[Any]:
            with progress() as advance:

                def advanced(*arguments: Any) -> None:
                    advance(*arguments)
                    self.reach()

                yield advanced

        return counting


def run_forked(arguments: str, folder: Path, number: int | None = None, at: int = 0) -> tuple[int, int]:
    """Run a command line in a forked process, killed at a point if `number` is given: (exit status, points)."""
    report = folder.parent / "told"
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        status = 99
        try:
            output = os.open(folder.parent / "said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            faulthandler.dump_traceback_later(_LONGEST - 5)
            import jax

            jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
            points = Points(folder, number, at)
            points.install()
            status = call(arguments, folder)
            report.write_text(json.dumps([points.count, sorted(sys.modules)]))
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    until = time.monotonic() + _LONGEST
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise TimeoutError(f"lpjax {arguments} hangs (point {at}): {(folder.parent / 'said').read_text()}")
        time.sleep(0.002)
    _, status = os.waitpid(child, 0)
    count, modules = json.loads(report.read_text()) if report.exists() else (0, [])
    for name in modules:
        # Imported here, once, and not again in every process that is forked from this one.
        if name not in sys.modules and not name.startswith("__"):
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
    return os.waitstatus_to_exitcode(status), count


# What a command leaves


def names(folder: Path) -> set[str]:
    """All files and folders in `folder`, by their paths in it."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def digest(path: Path) -> str | None:
    """The hash of a file, or of all names and files in a folder; None if `path` does not exist."""
    if not path.exists():
        return None
    sha256 = hashlib.sha256()
    for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
        sha256.update(f"{each.relative_to(path)}\0".encode() + (each.read_bytes() if each.is_file() else b""))
    return sha256.hexdigest()


def weights(path: Path) -> bytes:
    """The bytes of the files with weights of a checkpoint, or of a program; empty of anything else."""
    suffixes = (".safetensors", ".msgpack", ".onnx", ".bin")
    files = sorted(file for file in path.rglob("*") if file.suffix in suffixes) if path.is_dir() else []
    return b"".join(file.read_bytes() for file in files)


def is_new(path: Path, reference: Path) -> bool:
    """Whether OUT is what a run that is not killed writes: it loads, and only times of day differ."""
    if path.is_dir():
        if not any((path / runtime).is_dir() for runtime in RUNTIMES):
            load_checkpoint(path)
        same = weights(path) == weights(reference) != b""
        return same and names(path) == names(reference)
    if path.suffix == ".safetensors":
        actual, other = (load_calibration(file).statistics for file in (path, reference))
        return actual.keys() == other.keys() and all(
            np.array_equal(getattr(actual[key], field.name), getattr(other[key], field.name))
            for key in actual
            for field in dataclasses.fields(actual[key])
        )
    if path.suffix == ".json":
        read_break_even(path)
        return True
    content = path.read_bytes()
    return content.endswith(b"IEND\xaeB`\x82") if path.suffix == ".png" else content.rstrip().endswith(b"</html>")


def state(path: Path, old: str | None, reference: Path) -> str:
    """ "old", "new", "lost" or "mixed"."""
    current = digest(path)
    if current == old:
        return "old"
    if current is None:
        return "lost"
    try:
        return "new" if is_new(path, reference) else "mixed"
    except (OSError, ValueError):
        return "mixed"


def measure(name: str, most: int | None = None, part: int = 0, parts: int = 1) -> list[dict[str, Any]]:
    """Kill a command at all of its points, or at `most` of them, evenly spaced; a row for each signal.

    With `parts`, only at each point whose number is `part` modulo that.
    """
    case = CASES[name]
    command = name.split()[0]
    with tempfile.TemporaryDirectory(prefix="lpjax-kills-") as place:
        root = Path(place).resolve()
        template, work, reference = root / "template", root / "work", root / "reference"
        template.mkdir()
        make_inputs(template)
        status, _ = run_forked("compress net small --layers embeddings --keep 0.5 --method svd", template)
        assert status == 0, (root / "said").read_text()
        first = case.arguments.format(out=case.out)
        again = f"{first} --force" + (" --resume" if command in _TRAINED else "")
        if case.forced:
            _make_old(template / case.out)
            first += " --force"
        old = digest(template / case.out)

        def prepare() -> None:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(template, work)

        count = 0
        for _ in range(2):  # the first one compiles and imports
            prepare()
            status, count = run_forked(first, work)
            assert status == 0, (root / "said").read_text()
        shutil.copytree(work, reference)
        expected = names(reference)
        followed: dict[tuple[str, ...], tuple[int, str, list[str]]] = {}

        def follow() -> tuple[int, str, list[str]]:
            """Run the command once more: its exit status, the state of OUT, and files that should not be there."""
            status, _ = run_forked(again, work)
            after = state(work / case.out, None, reference / case.out)
            return status, after, sorted(names(work) ^ expected)

        chosen = range(1, count + 1)
        if most is not None and most < count:
            chosen = sorted({1 + i * count // most for i in range(most)})
        chosen = [at for at in chosen if at % parts == part]
        rows = []
        for number in SIGNALS:
            row: dict[str, Any] = {"command": name, "signal": number.name, "points": len(chosen)}
            row |= dict.fromkeys(("lost", "mixed", "left_at_once", "left_after_another_run", "other_result"), 0)
            faults = []
            for at in chosen:
                prepare()
                status, _ = run_forked(first, work, number, at)
                output = (root / "said").read_text()
                killed = state(work / case.out, old, reference / case.out)
                snapshot = f"{case.out}.{command}.safetensors"
                left = names(work) - expected - {snapshot} - _inside(work, case.out)
                key = _leavings(work, snapshot)
                if key not in followed:
                    followed[key] = follow()
                status_again, after, remains = followed[key]
                row["lost"] += killed == "lost"
                row["mixed"] += killed == "mixed"
                row["left_at_once"] += bool(left)
                row["left_after_another_run"] += bool(remains) or status_again != 0
                row["other_result"] += after != "new"
                right = -number if number == signal.SIGKILL else 128 + number
                if (
                    status != right or status_again != 0 or killed in ("lost", "mixed") or after != "new" or remains
                    or (left and number == signal.SIGTERM)
                ):  # fmt: skip
                    faults.append({"point": at, "status": status, "again": status_again, "killed": killed,
                                   "after": after, "left": sorted(left), "remains": remains,
                                   "said": output[-500:]})  # fmt: skip
            rows.append(row | {"faults": len(faults)})
            for fault in faults[:5]:
                print(f"{name} {number.name}: {json.dumps(fault)}", file=sys.stderr)
        return rows


def _leavings(work: Path, snapshot: str) -> tuple[str, ...]:
    """All files by name and content. A snapshot counts by its update alone, because it also holds the time."""
    entries = []
    for path in sorted(work.rglob("*")):
        name = re.sub(r"\.[0-9a-f]{8}\.new", ".new", str(path.relative_to(work)))
        if path.name == snapshot:
            with safe_open(path, framework="numpy") as file:
                entries.append(f"{name} {json.loads(file.metadata()['log'])['step']}")
        else:
            entries.append(f"{name} {digest(path) if path.is_file() else ''}")
    return tuple(entries)


def _inside(work: Path, out: str) -> set[str]:
    """What lies in a folder OUT, which `state` judges."""
    return {f"{out}/{name}" for name in names(work / out)} if (work / out).is_dir() else set()


def _make_old(path: Path) -> None:
    """Write something that the command may replace and that differs from its output."""
    if path.suffix == ".safetensors":
        save_file({"old": np.zeros(1)}, path, metadata={"lpjax": '{"schema": "lpjax-calibration/1"}'})
        return
    if path.suffix:
        path.write_bytes(_OLD_FILES[path.suffix])
        return
    config = config_from_json(_CONFIG)
    save_checkpoint(Checkpoint(random_params(config, seed=1), config, config_json=_CONFIG), path)
    (path / "notes.txt").write_text("old")


def _summed(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The sum of the rows of two parts of a command."""
    return {key: value + other[key] if isinstance(value, int) else value for key, value in row.items()}


def main() -> None:
    """Kill every command, two at a time; print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", help="one command, in this process; prints its rows")
    parser.add_argument("--part", nargs=2, type=int, default=(0, 1), help="of it, and of how many parts")
    parser.add_argument("--only", nargs="*", help="these commands; nothing is written")
    parser.add_argument("--again", nargs="*", help="these commands; their rows of the record are replaced")
    parser.add_argument("--most", type=int, help="points of a command and signal at most")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.most, *options.part)))
        return
    began = time.perf_counter()

    def measured(share: tuple[str, int, int]) -> list[dict[str, Any]]:
        name, part, parts = share
        command = [sys.executable, "-m", "experiments.kills", "--one", name, "--part", str(part), str(parts)]
        command += [] if options.most is None else ["--most", str(options.most)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | ENVIRONMENT)
        rows = json.loads(output.stdout)
        print(*rows, sep="\n", flush=True)
        return rows

    chosen = options.only or options.again or list(CASES)
    # The longest first, in halves.
    long = [name for name in chosen if name.split()[0] in (*_TRAINED, "calibrate")]
    shares = [(name, part, 2) for name in long for part in range(2)]
    shares += [(name, 0, 1) for name in chosen if name not in long]
    by_command: dict[str, list[dict[str, Any]]] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        for (name, *_), rows in zip(shares, pool.map(measured, shares), strict=True):
            if name in by_command:
                by_command[name] = [_summed(*two) for two in zip(by_command[name], rows, strict=True)]
            else:
                by_command[name] = rows
    rows = [row for name in chosen for row in by_command[name]]
    record = run_record(None) | {"seconds": time.perf_counter() - began, "rows": rows}
    if options.again:
        record = json.loads(RESULTS.read_text(encoding="utf-8"))
        for row in record["rows"]:
            if row["command"] not in chosen:
                by_command.setdefault(row["command"], []).append(row)
        record["rows"] = [row for name in CASES for row in by_command.get(name, ())]
    print(kills_table(record))
    if options.only is None and options.most is None:
        write_json(RESULTS, record)
    sys.exit(any(row["faults"] for row in rows))


if __name__ == "__main__":
    main()
