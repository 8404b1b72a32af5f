"""Training of factored models: on labels, or on the outputs of the dense model."""

from lpjax.training._finetune import Finetuned as Finetuned
from lpjax.training._finetune import Settings as Settings
from lpjax.training._finetune import finetune as finetune
from lpjax.training._recover import Recovered as Recovered
from lpjax.training._recover import Recovery as Recovery
from lpjax.training._recover import recover as recover
