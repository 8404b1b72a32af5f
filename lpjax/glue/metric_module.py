"""GLUE's metrics as a module of `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets

from lpjax._extras import without_advice
from lpjax.glue.metrics import compute, scored_task

with without_advice():  # `evaluate` imports transformers
    import evaluate

_DESCRIPTION = """Metrics of GLUE, the General Language Understanding Evaluation benchmark (Wang et al., ICLR 2019):
Matthews correlation for CoLA, accuracy and F1 for MRPC and QQP, Pearson and Spearman correlation for STS-B, accuracy
for the others."""
_INPUTS = """
Args:
    predictions, references: label numbers in the hub's order, or scores for STS-B.
"""


class Glue(evaluate.Metric):
    """The metric that `evaluate.load("glue", name)` returns, from this package instead of the hub.

    `config_name` is a task's name or title, "mnli_matched" or "mnli_mismatched". The correlation with constant
    predictions, which is undefined, is 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        kind = "float32" if scored_task(self.config_name).is_regression else "int64"
        features = datasets.Features({"predictions": datasets.Value(kind), "references": datasets.Value(kind)})
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=features, format="numpy"
        )

    def _build_data_dir(self) -> str:
        # The base class makes a folder in the cache even if nothing is written to it.
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()

    def _compute(self, *, predictions: Any = None, references: Any = None, **_: Any) -> dict[str, float]:
        return compute(scored_task(self.config_name), predictions, references)
