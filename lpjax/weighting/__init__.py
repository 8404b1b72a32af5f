"""What text says of which errors of a layer count, and how much."""

from lpjax.weighting._calibrate import calibrate as calibrate
from lpjax.weighting._statistics_file import load_calibration as load_calibration
from lpjax.weighting._statistics_file import save_calibration as save_calibration
from lpjax.weighting.statistics import Calibration as Calibration
from lpjax.weighting.statistics import Statistics as Statistics
from lpjax.weighting.weightings import WEIGHTINGS as WEIGHTINGS
from lpjax.weighting.weightings import Weighting as Weighting
