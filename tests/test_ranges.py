"""Numbers that cannot be meant: exit status 2 with the range, before any file is read; in Python a ValueError."""

from __future__ import annotations

import pytest

import lpjax
from lpjax.glue.split import first_rows
from lpjax.models.heads import with_head
from lpjax.training import Settings
from tests.conftest import Command
from tests.helpers.ranges import BELOW, below

pytestmark = pytest.mark.filterwarnings("default")

COMMANDS = {
    "compress": ["net", "out", "--keep", "0.5"],
    "calibrate": ["net", "out.safetensors"],
    "bench": ["net"],
    "evaluate": ["net"],
    "recover": ["net", "out"],
    "finetune": ["net", "out", "--task", "sst2"],
}
WHOLE = [
    ("compress", "--num-iters", 0),
    ("calibrate", "--texts", 1),
    ("calibrate", "--batch-size", 1),
    ("calibrate", "--max-length", 3),
    ("calibrate", "--seed", 0),
    ("bench", "--tokens", 1),
    ("evaluate", "--batch-size", 1),
    ("evaluate", "--max-length", 3),
    ("recover", "--texts", 2),
    ("recover", "--epochs", 1),
    ("recover", "--batch-size", 1),
    ("recover", "--max-length", 3),
    ("recover", "--seed", 0),
    ("finetune", "--epochs", 1),
    ("finetune", "--batch-size", 1),
    ("finetune", "--accumulate", 1),
    ("finetune", "--max-length", 3),
    ("finetune", "--eval-every", 1),
    ("finetune", "--eval-rows", 1),
    ("finetune", "--hold-out", 0),
    ("finetune", "--patience", 1),
    ("finetune", "--seed", 0),
]
NUMBERS = [
    ("compress", "--tol"),
    ("compress", "--p"),
    ("compress", "--sparse"),
    ("recover", "--lr"),
    ("recover", "--hidden"),
    ("finetune", "--lr"),
    ("finetune", "--warmup"),
    ("finetune", "--weight-decay"),
    ("finetune", "--clip"),
    ("finetune", "--save-every"),
]


def refused(command: Command, name: str, option: str, value: str) -> str:
    status, printed, err = command(name, *COMMANDS[name], option, value)
    assert (status, printed) == (2, ""), (name, option, value, err)
    return " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(("name", "option", "least"), WHOLE)
def test_whole_numbers_have_ranges(command: Command, name, option, least):
    most = 2**32 - 1 if option == "--seed" else 2**31 - 1
    for value in (most + 1, 10**400):
        err = refused(command, name, option, str(value))
        assert option in err
        assert f"from {least} to {most}" in err or f"expected at most {most}" in err
    err = refused(command, name, option, str(least - 1))
    assert option in err
    assert f"{least} or more" in err or below(least - 1, least) in err
    for value in ("9" * 5000, "1.5"):
        assert option in refused(command, name, option, value)


@pytest.mark.parametrize(("name", "option"), NUMBERS)
def test_numbers_are_finite_and_have_ranges(command: Command, name, option):
    for value in ("nan", "-inf", "-1", *([] if option == "--p" else ["inf", "1e400"])):  # p = ∞ is the largest error
        err = refused(command, name, option, value)
        assert "expected" in err or BELOW in err


@pytest.mark.parametrize("option", ["--keep", "--rank", "--budget"])
@pytest.mark.parametrize("value", ["nan", "inf", "-1", "0", "1e400", str(2**64)])
def test_goals_have_ranges(command: Command, option, value):
    status, printed, err = command("compress", "net", "out", option, value)
    assert (status, printed) == (2, "")
    assert option in err
    assert "expected" in err or "Invalid value" in err


@pytest.mark.parametrize(
    "seed", [-1, 2**32, 2**64, 10**5000, 1.0, True, None], ids=["-1", "2^32", "2^64", "huge", "1.0", "True", "None"]
)
def test_seeds_in_python_have_the_same_range(folder, seed):
    net = lpjax.load_checkpoint(folder)
    attempts = [
        lambda: lpjax.calibrate(net, ["a b"], seed=seed),
        lambda: lpjax.measure_break_even(net.params, seed=seed),
        lambda: with_head(net.params, net.config, 2, seed=seed),
        lambda: lpjax.Recovery(seed=seed),
        lambda: Settings(seed=seed),
    ]
    for attempt in attempts:
        with pytest.raises(
            ValueError, match=r"`seed` is .*; expected a whole number, (0 or more|from 0 to 4294967295)"
        ):
            attempt()


@pytest.mark.parametrize("size", [0, 2**31, 10**5000, 2.0, None], ids=["0", "2^31", "huge", "2.0", "None"])
def test_sizes_in_python_have_the_same_range(folder, size):
    net = lpjax.load_checkpoint(folder)
    for attempt in (
        lambda: lpjax.calibrate(net, ["a b"], batch_size=size),
        lambda: lpjax.measure_break_even(net.params, tokens=size),
        lambda: lpjax.Divergence(net, ["a b"], batch_size=size),
        lambda: first_rows(None, size),
        lambda: with_head(net.params, net.config, size),
        lambda: Settings(epochs=size),
        lambda: lpjax.Recovery(checks=size),
    ):
        with pytest.raises(ValueError, match=r"expected a whole number, (1 or more|from 1 to 2147483647)"):
            attempt()
