"""Functions mapped over many matrices, on all cores of a machine."""

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

_MOST = 8  # matrices rounded at a time: each needs a few copies of its metrics


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable[[T], U], items: Iterable[T], workers: int) -> Iterator[U]:
    """`function` of each item, in order.

    With several workers LAPACK has one thread; each worker has one item at a time, and one more item is queued.
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
    """`function` of each item in the order of completion, so that none waits for a large one.

    Rounding is sequential and one matrix keeps one core busy; with one matrix per core it takes two thirds of the time
    on two cores. An item is taken as soon as a core is free. Running items are finished even after an interruption.

    The workers share the cores for BLAS, too. Its threads wait by spinning: if there are more of them than free cores,
    because each worker has its own or another program runs beside, a Cholesky factorization takes minutes.
    """
    workers = min(cores(), _MOST)
    running: set[Future[U]] = set()
    pool, function = ThreadPoolExecutor(workers), as_here(function)
    try:
        with threadpool_limits(cores() // workers, "blas"):
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
    """`function` under this thread's settings of JAX and NumPy, which other threads do not inherit."""
    context = contextvars.copy_context()
    device, wide, precision = (
        getattr(jax.config, f"jax_{name}") for name in ("default_device", "enable_x64", "default_matmul_precision")
    )

    def run(item: T) -> U:
        with jax.default_device(device), jax.enable_x64(wide), jax.default_matmul_precision(precision):
            return context.copy().run(function, item)

    return run
