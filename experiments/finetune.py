"""Fine-tune the nets of a config on its tasks: `python -m experiments.finetune CONFIG [--runs DIR] [--only NET-TASK]`.

Each is one `lpjax finetune`, printed as it is run, in a process of its own. What is there already is skipped, and what
was interrupted goes on. Weights go to DIR/NET-TASK, by default runs/; the record of each, with its curve, seed,
versions and machine, to NET-TASK.json in the folder of --records, by default experiments/results/finetune.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from experiments.config import Cell, chosen_cells, parser

RESULTS = Path(__file__).parent / "results" / "finetune"


def command_line(cell: Cell, runs: Path) -> list[str]:
    """The command line that fine-tunes one net on one task."""
    model = cell.model if cell.start is None else str(runs / f"{cell.net}-{cell.start}")
    options: dict[str, Any] = {key: value for key, value in cell.settings.items() if value is not None}
    flags = [part for key, value in options.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    return ["lpjax", "finetune", model, str(runs / cell.name), "--task", cell.task, *flags, "--resume"]


def main() -> None:
    """Run what is missing."""
    arguments = parser(__doc__)
    arguments.add_argument("--records", type=Path, default=RESULTS, metavar="DIR")
    options = arguments.parse_args()
    for cell in chosen_cells(options):
        if cell.checkpoint is not None:
            continue  # somebody fine-tuned it
        out = options.runs / cell.name
        if not out.exists():
            command = command_line(cell, options.runs)
            print(shlex.join(command), flush=True)
            subprocess.run([sys.executable, "-m", *command], check=True)
        options.records.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / "finetune.json", options.records / f"{cell.name}.json")


if __name__ == "__main__":
    main()
