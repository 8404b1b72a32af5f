"""GLUE: its tasks, data, labels and metrics, and the score of a model."""

from lpjax.glue.data import DataError as DataError
from lpjax.glue.data import Examples as Examples
from lpjax.glue.data import Pairs as Pairs
from lpjax.glue.data import available_splits as available_splits
from lpjax.glue.data import load_examples as load_examples
from lpjax.glue.data import load_sentences as load_sentences
from lpjax.glue.data import load_stsb as load_stsb
from lpjax.glue.evaluate import Logits as Logits
from lpjax.glue.evaluate import Prepared as Prepared
from lpjax.glue.evaluate import TaskResult as TaskResult
from lpjax.glue.evaluate import evaluate_task as evaluate_task
from lpjax.glue.evaluate import predict as predict
from lpjax.glue.evaluate import prepare as prepare
from lpjax.glue.evaluate import to_predictions as to_predictions
from lpjax.glue.labels import label_config as label_config
from lpjax.glue.labels import label_order as label_order
from lpjax.glue.labels import output_labels as output_labels
from lpjax.glue.labels import own_task as own_task
from lpjax.glue.metrics import glue_average as glue_average
from lpjax.glue.metrics import glue_metric as glue_metric
from lpjax.glue.metrics import score as score
from lpjax.glue.split import first_rows as first_rows
from lpjax.glue.split import hold_out as hold_out
from lpjax.glue.tasks import TASKS as TASKS
from lpjax.glue.tasks import Task as Task
from lpjax.glue.tasks import find_task as find_task
