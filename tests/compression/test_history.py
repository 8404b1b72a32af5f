"""What a page tells of training after compression."""

from __future__ import annotations

import json

import pytest

from lpjax._files.json import RecordError
from lpjax.compression.history import earlier_recovery, training_files, training_notes

RECOVER = {
    "best": {"step": 213, "epoch": 1, "divergence": 0.0450},
    "curve": [{"step": 0, "epoch": 0, "divergence": 0.0658}, {"step": 213, "epoch": 1, "divergence": 0.0450}],
    "texts": 6793,
    "held_out": 256,
}
FINETUNE = {"best": {"step": 104}, "task": "mrpc", "train": {"rows": 3302}}


def test_nothing_was_trained(tmp_path):
    assert training_notes(tmp_path) == []
    assert training_files(None) == {}


def test_recovery_then_fine_tuning(tmp_path):
    for name, record in (("finetune.json", FINETUNE), ("recover.json", RECOVER)):
        (tmp_path / name).write_text(json.dumps(record))
    first, second = training_notes(tmp_path)
    assert "6,793 texts, by 213 updates: divergence from the dense model 0.0658 → 0.045 on 256" in first
    assert "3,302 examples of mrpc, by 104 updates" in second
    assert set(training_files(tmp_path)) == {"recover.json", "finetune.json"}


def test_recovery_that_left_the_net_as_it_was(tmp_path):
    record = RECOVER | {"best": RECOVER["curve"][0]}
    (tmp_path / "recover.json").write_text(json.dumps(record))
    assert training_notes(tmp_path) == ["lpjax recover did not improve it, and left it as it was (divergence 0.0658)."]


DEEP = 200_000 * "[" + 200_000 * "]"


@pytest.mark.parametrize("name", ["recover.json", "finetune.json"])
@pytest.mark.parametrize(
    "text", ["", "[]", '{"best": 1}', DEEP, '{"best": {"step": 1e400}}', '{"a": %s}' % ("9" * 5000)]
)
def test_damage_is_told_by_name(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert f"{name}, which says how, can't be read" in training_notes(tmp_path)[0]


@pytest.mark.parametrize("text", ["[]", DEEP, "{"])
def test_recovery_does_not_begin_with_a_history_that_is_lost(text):
    with pytest.raises(RecordError, match=r"recover.json .*; remove it to continue without the history"):
        earlier_recovery({"recover.json": text})


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"best": 1, "curve": []}', '{"best": {}, "curve": [1]}'])
def test_files_that_tell_nothing(tmp_path, text):
    (tmp_path / "recover.json").write_text(text)
    assert "recover.json, which says how, can't be read" in training_notes(tmp_path)[0]
