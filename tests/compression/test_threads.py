"""Results of threads: none is lost, none waits for a slow one, and items are taken only when a core is free."""

from __future__ import annotations

import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lpjax.compression import threads
from lpjax.compression.threads import as_done, in_order


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 2)


def test_every_item_has_its_result():
    assert sorted(as_done(lambda x: x * x, range(20))) == [x * x for x in range(20)]
    assert list(in_order(lambda x: x * x, range(20), 2)) == [x * x for x in range(20)]
    assert list(as_done(str, [])) == list(in_order(str, [], 2)) == []


def test_none_waits_for_a_slow_one():
    """The first item ends only once all others are done and their results taken."""
    others = threading.Event()

    def work(item: int) -> int:
        assert item or others.wait(60)
        return item

    results = []
    for item in as_done(work, range(6)):
        results.append(item)
        if len(results) == 5:
            others.set()
    assert results[-1] == 0
    assert sorted(results) == list(range(6))


@pytest.mark.parametrize("workers", [1, 2])
def test_order_is_kept_if_a_later_one_is_done_first(workers: int):
    later = threading.Event()

    def work(item: int) -> int:
        if item == 1:
            later.set()
        assert item or workers == 1 or later.wait(60)
        return item

    assert list(in_order(work, range(4), workers)) == list(range(4))


def test_items_are_taken_when_a_core_is_free():
    """At most two items of an endless source are taken ahead of the results."""
    taken = 0

    def source():
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results: Any = as_done(lambda x: x, source())
    for count in range(1, 10):
        next(results)
        assert taken <= count + 2
    results.close()


def test_an_error_is_raised_and_ends_the_work():
    started = []

    def work(item: int) -> int:
        started.append(item)
        if item == 3:
            raise ValueError("of item 3")
        return item

    with pytest.raises(ValueError, match="of item 3"):
        list(as_done(work, range(1000)))
    assert len(started) < 1000


def test_threads_have_the_settings_of_their_caller():
    """JAX's contexts and NumPy's are of one thread each."""

    def seen(_: int) -> tuple[Any, ...]:
        with np.errstate(divide="ignore"):
            divide = np.geterr()["invalid"]
        device = next(iter(jnp.zeros(()).devices()))
        return jnp.arange(2.0).dtype, jax.config.read("jax_enable_x64"), device, divide

    wide = not jax.config.read("jax_enable_x64")
    with jax.enable_x64(wide), jax.default_device(jax.devices()[-1]), np.errstate(invalid="raise"):
        here = seen(0)
        assert here[0] == ("float64" if wide else "float32")
        assert list(as_done(seen, range(4))) == list(in_order(seen, range(4), 2)) == [here] * 4
