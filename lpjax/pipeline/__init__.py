"""Text embedding as in sentence-transformers: how texts are read, and the stages after the model."""

from lpjax.pipeline._read import read_pipeline as read_pipeline
from lpjax.pipeline._stages import ACTIVATIONS as ACTIVATIONS
from lpjax.pipeline._stages import MEAN as MEAN
from lpjax.pipeline._stages import POOLINGS as POOLINGS
from lpjax.pipeline._stages import Dense as Dense
from lpjax.pipeline._stages import LayerNorm as LayerNorm
from lpjax.pipeline._stages import Normalize as Normalize
from lpjax.pipeline._stages import Pooling as Pooling
from lpjax.pipeline._stages import SentencePipeline as SentencePipeline
from lpjax.pipeline._stages import Stage as Stage
from lpjax.pipeline._stages import Truncate as Truncate
from lpjax.pipeline._stages import sentence_vectors as sentence_vectors
from lpjax.pipeline._text import TextRules as TextRules
from lpjax.pipeline._text import sentence_tokenizer as sentence_tokenizer
from lpjax.pipeline._text import tokenize_sentences as tokenize_sentences
