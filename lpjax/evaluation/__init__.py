"""What compression cost: scores against gold labels, and divergence from the dense net."""

from lpjax.evaluation.divergence import Divergence as Divergence
