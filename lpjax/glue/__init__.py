"""GLUE data."""

from lpjax.glue.data import DataError as DataError
from lpjax.glue.data import Pairs as Pairs
from lpjax.glue.data import load_sentences as load_sentences
from lpjax.glue.data import load_stsb as load_stsb
