"""Functions of many matrices, on all cores of a machine."""

from __future__ import annotations

import collections
import contextvars
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import jax
from threadpoolctl import threadpool_limits

T = TypeVar("T")
U = TypeVar("U")

_MOST = 8  # matrices that are rounded at a time: each needs a few copies of its metrics


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[T], U], items: Iterable[T], workers: int) -> Iterator[U]:
    """`function` of each item, in order.

    With several workers LAPACK has one thread, and there is one item for each worker at a time, and one more that waits
    for a core.
    """
    if workers == 1:
        yield from map(function, items)
        return
    running: collections.deque[Future[U]] = collections.deque()
    pool, function = ThreadPoolExecutor(workers), as_here(function)
    try:
        with threadpool_limits(1, "blas"):
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) > workers:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def as_done(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`function` of each item, as they are done, so that none waits for a large one.

    Rounding goes from entry to entry, and one matrix keeps one core busy: a core for each matrix takes two thirds of
    the time on two cores. An item is taken when fewer are at work than there are cores. What is at work is finished
    even after an interruption.
    """
    workers = min(cores(), _MOST)
    running: set[Future[U]] = set()
    pool, function = ThreadPoolExecutor(workers), as_here(function)
    try:
        for item in items:
            running.add(pool.submit(function, item))
            if len(running) >= workers:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    finally:
        pool.shutdown(cancel_futures=True)


def as_here(function: Callable[[T], U]) -> Callable[[T], U]:
    """`function`, for any thread, under the settings of this one: each thread has its own of JAX and NumPy."""
    context = contextvars.copy_context()
    device, wide, precision = (
        getattr(jax.config, f"jax_{name}") for name in ("default_device", "enable_x64", "default_matmul_precision")
    )

    def run(item: T) -> U:
        with jax.default_device(device), jax.enable_x64(wide), jax.default_matmul_precision(precision):
            return context.copy().run(function, item)

    return run
