"""Programs that depend on what a test changes in a module are traced anew."""

from __future__ import annotations

import sys


def forget_programs() -> None:
    """Forget what `jax.jit` compiled of lpjax's own functions, and of no others: `jax.clear_caches` takes far longer,
    and all that other tests share is then compiled again."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "lpjax":
            for function in list(vars(module).values()):
                if callable(clear := getattr(function, "clear_cache", None)):
                    clear()
