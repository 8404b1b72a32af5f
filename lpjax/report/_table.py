"""Results as a table on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE
from rich.table import Table


def results_table(rows: Sequence[Mapping[str, Any]], *, score: str, dense: float, title: str = "") -> Table:
    """A rich table of demo or experiment rows.

    Args:
        rows: mappings with keys layers, method, p (None for dense), compression (share), parameters, score,
            seconds (None for dense).
        score: what the score is, for the title.
        dense: score of the uncompressed net, which losses are taken from.
        title: of the table.
    """
    # One line a row in 80 columns: what is long goes into the title.
    table = Table(title=f"{title}\n{score}" if title else score, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    for heading in ("layers", "method"):
        table.add_column(heading, no_wrap=True)
    for heading in ("smaller", "M params", "score", "loss", "seconds"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = None
    for row in rows:
        group = (row["layers"], row["compression"])
        if (previous is not None and group[0] != previous[0]) or (previous and group[1] != previous[1]):
            table.add_section()
        previous = group
        seconds = row.get("seconds")
        table.add_row(
            row["layers"],
            row["method"] if row["p"] is None else f"{row['method']} p={row['p']:g}",
            f"{100 * row['compression']:.0f} %",
            f"{row['parameters'] / 1e6:.2f}",
            f"{row['score']:.4f}",
            f"{dense - row['score']:+.4f}",
            "" if seconds is None else f"{seconds:.1f}",
        )
    return table
