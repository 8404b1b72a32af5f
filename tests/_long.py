"""Which cases take long. `make test` leaves these out, `.ci/run` runs a quarter of them; tests/long.txt lists them.

`make long` measures them anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

LIST = Path(__file__).parent / "long.txt"
_LONG, _TOO_LONG = 1.0, 2.0  # seconds


def long_cases(seconds: Mapping[str, float]) -> list[str]:
    """The cases, by node id, that take long. The quickest case of a test counts only from `_TOO_LONG` on."""
    tests: defaultdict[str, list[str]] = defaultdict(list)
    for case in sorted(seconds, key=lambda case: seconds[case]):
        tests[case.partition("[")[0]].append(case)
    chosen = [
        case
        for cases in tests.values()
        for case in cases
        if seconds[case] >= (_TOO_LONG if case == cases[0] else _LONG)
    ]
    return sorted(chosen)


def mark_long(items: Iterable[pytest.Item]) -> None:
    """Give the listed cases the mark `long`."""
    listed = set(LIST.read_text(encoding="utf-8").splitlines())
    for item in items:
        if item.nodeid in listed:
            item.add_marker("long")


class Stopwatch:
    """A plugin that writes the list, from how long every case of this run takes with what is set up for it."""

    def __init__(self) -> None:
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the time of a phase."""
        self._seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        """Write the list."""
        LIST.write_text("".join(f"{case}\n" for case in long_cases(self._seconds)), encoding="utf-8")
