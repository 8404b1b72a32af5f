"""The nets and tasks of an experiment, from a TOML file such as those in configs/."""

from __future__ import annotations

import argparse
import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from lpjax.glue import Examples, find_task, load_examples
from lpjax.glue.split import first_rows


@dataclasses.dataclass(frozen=True)
class Cell:
    """A net on a task.

    Attributes:
        net, task: their names.
        model: what is fine-tuned: a folder, a hub id, or a name that `lpjax` knows.
        checkpoint: a checkpoint that is fine-tuned already, so that nothing is trained.
        start: a task that `model` is fine-tuned on before this one, or None.
        settings: options of `lpjax finetune`.
    """

    net: str
    task: str
    model: str
    checkpoint: str | None
    start: str | None
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        """The name of its folder and records."""
        return f"{self.net}-{self.task}"

    def source(self, runs: Path) -> str | Path:
        """The fine-tuned net: a folder in `runs`, or what the config names."""
        return self.checkpoint or runs / self.name

    def dev(self) -> Examples:
        """The examples that it is scored on."""
        rows = self.settings.get("eval_rows")
        examples = load_examples(self.task, self.settings.get("eval_split", "validation"))
        return examples if rows is None else first_rows(examples, rows)


@dataclasses.dataclass(frozen=True)
class Grid:
    """What every net is compressed by, on every task.

    Attributes:
        layers: "embeddings", "encoder" or "both".
        compressions: percent of the layers' parameters that go, in the order to compute them.
        methods: solver -> values of p.
        options: solver -> its further options.
    """

    layers: list[str]
    compressions: list[int]
    methods: dict[str, list[float]]
    options: dict[str, dict[str, Any]]


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all commands over a config have."""
    arguments = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("config", type=Path)
    arguments.add_argument("--runs", type=Path, default=Path("runs"), help="where the fine-tuned nets are")
    arguments.add_argument("--only", action="append", help="NET-TASK; may be repeated")
    return arguments


def chosen_cells(options: argparse.Namespace) -> list[Cell]:
    """The cells of the config, or those that --only names."""
    return [cell for cell in read_config(options.config) if not options.only or cell.name in options.only]


def read_grid(path: Path) -> Grid:
    """The grid of a config."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))["grid"]
    return Grid(data["layers"], data["compressions"], data["methods"], data.get("options", {}))


def read_config(path: Path) -> list[Cell]:
    """Every net on every task of a config, in its order: the tasks of all nets, and those of its own instead.

    Raises:
        ValueError: an unknown task.
    """
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    cells = []
    for net, entry in data["nets"].items():
        own = entry.get("tasks", {})
        for task, table in (data.get("tasks", {}) | own).items():
            settings = dict(table)
            checkpoint = settings.pop("checkpoint", None)
            start = settings.pop("start", None)
            cells.append(Cell(net, find_task(task).name, entry.get("model", ""), checkpoint, start, settings))
    return cells
