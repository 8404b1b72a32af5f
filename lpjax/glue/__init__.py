"""GLUE: its tasks, data, labels and metrics."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from lpjax.glue.data import DataError as DataError
from lpjax.glue.data import Examples as Examples
from lpjax.glue.data import Pairs as Pairs
from lpjax.glue.data import available_splits as available_splits
from lpjax.glue.data import load_examples as load_examples
from lpjax.glue.data import load_sentences as load_sentences
from lpjax.glue.data import load_stsb as load_stsb
from lpjax.glue.labels import label_config as label_config
from lpjax.glue.labels import label_order as label_order
from lpjax.glue.tasks import TASKS as TASKS
from lpjax.glue.tasks import Task as Task
from lpjax.glue.tasks import find_task as find_task

if _TYPE_CHECKING:
    from lpjax.glue.metrics import Glue as Glue
    from lpjax.glue.metrics import glue_average as glue_average
    from lpjax.glue.metrics import glue_metric as glue_metric
    from lpjax.glue.metrics import score as score


def __getattr__(name: str) -> _Any:
    # On first use: `evaluate` and scikit-learn are slow to import.
    if name in ("Glue", "glue_average", "glue_metric", "score"):
        from lpjax.glue import metrics

        return getattr(metrics, name)
    raise AttributeError(f"module 'lpjax.glue' has no attribute {name!r}")
