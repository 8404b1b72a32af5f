"""Statistics of a model on text, and weightings of layer errors by them."""

from lpjax.weighting._calibrate import calibrate as calibrate
from lpjax.weighting.statistics import Calibration as Calibration
from lpjax.weighting.statistics import Statistics as Statistics
from lpjax.weighting.statistics import load_calibration as load_calibration
from lpjax.weighting.statistics import save_calibration as save_calibration
from lpjax.weighting.weightings import WEIGHTINGS as WEIGHTINGS
from lpjax.weighting.weightings import Weighting as Weighting
