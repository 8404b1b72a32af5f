"""The choice of what takes long, and the list against the tests that there are."""

from __future__ import annotations

from pathlib import Path

from tests._long import LIST, Stopwatch, long_cases

ROOT = Path(__file__).parents[1]


def test_the_quickest_case_of_a_test_stays():
    seconds = {"a.py::t[1]": 2.0, "a.py::t[2]": 9.0, "a.py::t[3]": 1.0, "b.py::u[1]": 1.5, "b.py::u[2]": 2.5}
    assert long_cases(seconds) == ["a.py::t[1]", "a.py::t[2]", "b.py::u[2]"]


def test_unless_it_takes_too_long_itself():
    assert long_cases({"a.py::t": 4.0, "a.py::u": 1.5, "b.py::v[1]": 5.0, "b.py::v[2]": 6.0}) == [
        "a.py::t",
        "b.py::v[1]",
        "b.py::v[2]",
    ]


def test_a_run_writes_its_list(monkeypatch, tmp_path):
    monkeypatch.setattr("tests._long.LIST", tmp_path / "long.txt")
    watch = Stopwatch()
    for phase in ({"nodeid": "a.py::t", "duration": 2.0}, {"nodeid": "a.py::t", "duration": 1.5}):
        watch.pytest_runtest_logreport(type("Report", (), phase)())
    watch.pytest_sessionfinish()
    assert (tmp_path / "long.txt").read_text() == "a.py::t\n"


def test_the_list_names_tests():
    cases = LIST.read_text(encoding="utf-8").splitlines()
    assert cases == sorted(set(cases))
    for case in cases:
        file, name = case.partition("[")[0].split("::")
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), case
