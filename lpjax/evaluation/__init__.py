"""What compression costs: scores against gold labels, divergence from the dense model, errors of weights, time."""

from lpjax.evaluation.divergence import Divergence as Divergence
from lpjax.evaluation.sentences import Embeddings as Embeddings
from lpjax.evaluation.sentences import FidelityResult as FidelityResult
from lpjax.evaluation.sentences import OutputsResult as OutputsResult
from lpjax.evaluation.sentences import StsbResult as StsbResult
from lpjax.evaluation.sentences import compare_outputs as compare_outputs
from lpjax.evaluation.sentences import embed_sentences as embed_sentences
from lpjax.evaluation.sentences import fidelity as fidelity
from lpjax.evaluation.sentences import stsb as stsb
