"""Measurements, opt-in; lpjax comes first, for it sets how SciPy's threads idle before SciPy is loaded."""

import lpjax  # noqa: F401
