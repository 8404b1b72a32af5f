"""Training of factored nets: on labels, or on what the dense net says of texts."""

from lpjax.training._finetune import Settings as Settings
from lpjax.training._finetune import finetune as finetune
from lpjax.training._recover import Recovered as Recovered
from lpjax.training._recover import Recovery as Recovery
from lpjax.training._recover import recover as recover
