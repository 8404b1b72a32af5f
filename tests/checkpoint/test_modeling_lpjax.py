"""Optional, if PyTorch is installed: compressed folders load there without lpjax, and compute what lpjax computes."""

# pyright: reportMissingImports=false

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
import transformers

import lpjax
from lpjax import load_checkpoint, save_checkpoint
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from lpjax.models import name_table
from lpjax.weights.quantized import Quantized
from tests.conftest import GOLDENS
from tests.helpers import heads
from tests.helpers.checkpoints import set_leaf
from tests.helpers.goldens import NETS, Golden, load_golden
from tests.helpers.kinds import KINDS, in_kind, saved_in_kind

pytestmark = pytest.mark.filterwarnings("ignore")

BASES = [*NETS, "bert_no_pooler", "camembert_base", "modernbert_biases", "albert_groups"]
CLASSIFIERS = [*(name.replace("base", "classifier") for name in NETS), "xlm-roberta_classifier", "modernbert_mean"]
WITH_HEAD = [*CLASSIFIERS, "bert_pretraining", "albert_pretraining", *(f"heads/{name}" for name in heads.CASES)]
ENTRIES, GROUPS, STEP = "factored with entries", "groups", "one step"
SENTENCE_CASES = ["mean, Normalize", "0_Transformer"]
NAME = "encoder.layer.0.attention.self.query.weight"
TABLE = "embeddings.word_embeddings.weight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies the code of a folder to where it imports it from: not into the user's cache."""
    cache = str(tmp_path_factory.getbasetemp() / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)


def load(folder: Path, kind: str = "", **options: Any) -> Any:
    options = {"trust_remote_code": True, **options}
    return getattr(transformers, f"AutoModel{kind}").from_pretrained(folder, **options)


def ask(model: Any, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Hidden states or logits, in float32."""
    with torch.no_grad():
        out = model(**{name: torch.tensor(np.asarray(ids, np.int64)) for name, ids in batch.items()})
    if "start_logits" in out:
        return torch.stack([out.start_logits, out.end_logits], dim=-1).float().numpy()
    return (out.logits if "logits" in out else out.last_hidden_state).float().numpy()


def assert_near(actual: np.ndarray, expected: Any, golden: Golden, atol: float = 1e-5) -> None:
    """Compare at real tokens, not at padding."""
    expected = np.asarray(expected).astype(np.float32)
    there = heads.there(golden) if actual.ndim == 3 else slice(None)
    np.testing.assert_allclose(actual[there], expected[there], rtol=0, atol=atol)


def of_file(golden: Golden, folder: Path) -> Golden:
    return golden._replace(checkpoint=load_checkpoint(folder))


def hidden(golden: Golden) -> Any:
    net = golden.checkpoint
    return lpjax.encode(net.params.get(name_table(net.config).prefix, net.params), net.config, golden.batch)


@pytest.mark.parametrize("name", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_those_of_lpjax(name: str, kind: str, tmp_path: Path):
    golden = load_golden(name)
    folder = saved_in_kind(golden.checkpoint, kind, tmp_path / "small")
    assert_near(ask(load(folder), golden.batch), hidden(of_file(golden, folder)), golden)


@pytest.mark.parametrize("name", WITH_HEAD)
@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_those_of_lpjax(name: str, kind: str, tmp_path: Path):
    golden = load_golden(name)
    folder = saved_in_kind(golden.checkpoint, kind, tmp_path / "small")
    (head,) = (name for name in json.loads((folder / "config.json").read_text())["auto_map"] if "For" in name)
    model, loading_info = load(folder, head.removeprefix("AutoModel"), output_loading_info=True)
    assert not any(loading_info.values())
    again = of_file(golden, folder)
    assert_near(ask(model, golden.batch), heads.run(again.checkpoint.params, again), golden)
    if kind == GROUPS:
        assert_near(ask(load(folder), golden.batch), hidden(again), golden)


def test_the_class_is_that_of_transformers(tmp_path: Path):
    folder = saved_in_kind(load_golden("bert_classifier").checkpoint, GROUPS, tmp_path / "small")
    assert type(load(folder)) is transformers.BertModel
    model = load(folder, "ForSequenceClassification")
    assert type(model) is transformers.BertForSequenceClassification
    assert not model.training
    # Others than this folder are loaded as before.
    export = tmp_path / "dense"
    lpjax.export_checkpoint(load_checkpoint(folder), export)
    assert type(transformers.AutoModel.from_pretrained(export)) is transformers.BertModel


def test_without_trust_it_is_refused(tmp_path: Path):
    for name, kinds in (("bert_base", [""]), ("bert_classifier", ["", "ForSequenceClassification"])):
        folder = saved_in_kind(load_golden(name).checkpoint, GROUPS, tmp_path / name)
        for kind in kinds:
            for options in ({"trust_remote_code": False}, {"trust_remote_code": None}):
                with pytest.raises(OSError, match=r"no file named|does not appear to have"):
                    load(folder, kind, **options)


def test_a_head_that_is_not_there_is_refused(tmp_path: Path):
    """Not made of random weights."""
    folder = saved_in_kind(load_golden("bert_base").checkpoint, GROUPS, tmp_path / "small")
    with pytest.raises(OSError, match=r"no file named|does not appear to have"):
        load(folder, "ForTokenClassification")


def test_a_pooler_that_is_not_there_is_not_made(tmp_path: Path):
    golden = load_golden("bert_no_pooler")
    model = load(saved_in_kind(golden.checkpoint, GROUPS, tmp_path / "small"))
    assert model.pooler is None


# Memory, dtypes, devices


@pytest.mark.parametrize("kind", [GROUPS, STEP])
def test_codes_stay_packed(kind: str, tmp_path: Path):
    net = in_kind(load_golden("bert_base").checkpoint, kind)
    save_checkpoint(net, tmp_path / "small")
    model = load(tmp_path / "small")
    own = {name: buffer for name, buffer in model.state_dict().items() if name.startswith(f"{NAME}.")}
    leaf = net.params["encoder"]["layer"]["0"]["attention"]["self"]["query"]["kernel"]
    assert isinstance(leaf, Quantized)
    assert sum(buffer.nbytes for name, buffer in own.items()) == leaf.nbytes
    assert {str(buffer.dtype) for name, buffer in own.items() if ".codes" in name} == {"torch.uint8"}


def test_every_width_is_unpacked(tmp_path: Path):
    """Codes of 0 to 16 bits, lines that end within a byte, and orders, as lpjax expands them."""
    rng = np.random.default_rng(0)
    net = load_golden("bert_base").checkpoint
    model = None
    for bits in (None, 2, 3, 4, 5, 6, 8, 16):
        most = 2 ** (bits - 1) if bits else 1
        spans = np.full(12, most) if bits else np.array([0, 1, 2, 9, 20, 40, 200, 30000, 3, 0, 100, 1])
        codes = rng.integers(-spans, np.maximum(spans, 1), (29, 12))
        table = Quantized.from_codes(codes, rng.uniform(0.5, 2, (29, 3)) / most, axis=1, group=5, bits=bits)
        params = set_leaf(net.params, "embeddings/word_embeddings/embedding", table)
        save_checkpoint(dataclasses.replace(net, params=params), tmp_path / f"small{bits}")
        model = load(tmp_path / f"small{bits}")
        ids = torch.arange(29).view(1, 29)
        rows = model.embeddings.word_embeddings(ids)[0].detach().numpy()
        np.testing.assert_array_equal(rows, np.asarray(table.dense()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["bert_base", "xlnet_base"])
def test_other_precisions(kind: str, name: str, tmp_path: Path):
    golden = load_golden(name)
    folder = saved_in_kind(golden.checkpoint, kind, tmp_path / "small")
    whole = load(folder)
    expected = ask(whole, golden.batch)
    scale = np.abs(expected).max()
    for dtype, tolerance in ((torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float64, 1e-5)):
        model = load(folder, dtype=dtype)
        assert model.dtype == dtype
        assert_near(ask(model, golden.batch), expected, golden, tolerance * scale)
    # Codes and scales are not rounded on the way; what is kept as floating-point numbers is.
    back = ask(whole.half().float(), golden.batch)
    assert_near(back, expected, golden, 0.02 * scale)
    scales = [name for name in whole.state_dict() if name.endswith(".scales")]
    assert {str(whole.state_dict()[name].dtype) for name in scales} <= {"torch.float16"}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("in_file", [True, False])
def test_rotary_positions_stay_in_float32(dtype: str, in_file: bool, tmp_path: Path):
    """As in transformers: frequencies of half precision turn far positions by whole radians."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 20}
    tokens = {f"{name}_token_id": number for number, name in enumerate(("pad", "bos", "eos", "cls", "sep"))}
    config = transformers.AutoConfig.for_model(
        "modernbert", **sizes, **tokens, num_hidden_layers=3, local_attention=8, initializer_range=0.2
    )
    half = getattr(torch, dtype)
    transformers.AutoModel.from_config(config).to(half if in_file else None).save_pretrained(tmp_path / "torch")
    net = load_checkpoint(tmp_path / "torch")
    params = lpjax.compress(net.params, select="embeddings", keep=0.6, solver="svd").params
    save_checkpoint(dataclasses.replace(net, params=params), tmp_path / "small")
    model = load(tmp_path / "small", **({} if in_file else {"dtype": half}))
    assert model.dtype == half

    positions = torch.tensor([[0, 1, 77, 8001]])
    for kind, theta in (("full_attention", 160_000), ("sliding_attention", 10_000)):
        turns, _ = model.rotary_emb(torch.zeros(1, dtype=torch.float64), positions, kind)
        angles = positions[0].numpy()[:, None] * float(theta) ** (-np.arange(0, 16, 2) / 16)
        np.testing.assert_allclose(turns[0].numpy(), np.tile(np.cos(angles), 2), rtol=0, atol=2e-3)

    # The rounding of activations is that of transformers, bit for bit, with the weights multiplied out.
    small = load_checkpoint(tmp_path / "small")
    lpjax.export_checkpoint(small, tmp_path / "dense")
    ids = np.random.default_rng(0).integers(5, 50, (2, 300))
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    ours = ask(model, batch)
    theirs = ask(transformers.AutoModel.from_pretrained(tmp_path / "dense", dtype=half), batch)
    expected = np.asarray(lpjax.encode(small.params, small.config, batch)).astype(np.float32)
    assert np.abs(ours - expected).max() <= 1.5 * np.abs(theirs - expected).max()


def test_the_state_of_one_model_loads_into_another(tmp_path: Path):
    golden = load_golden("bert_classifier")
    folder = saved_in_kind(golden.checkpoint, STEP, tmp_path / "small")
    model, other = (load(folder, "ForSequenceClassification") for _ in range(2))
    expected = ask(model, golden.batch)
    with torch.no_grad():
        for tensor in other.state_dict().values():
            tensor.zero_()
    assert np.abs(ask(other, golden.batch) - expected).max() > 1e-3
    incompatible = other.load_state_dict(model.state_dict())
    assert not incompatible.missing_keys
    assert not incompatible.unexpected_keys
    np.testing.assert_array_equal(ask(other, golden.batch), expected)
    np.testing.assert_array_equal(ask(copy.deepcopy(model), golden.batch), expected)


def test_factors_can_be_trained(tmp_path: Path):
    golden = load_golden("bert_classifier")
    model = load(saved_in_kind(golden.checkpoint, ENTRIES, tmp_path / "small"), "ForSequenceClassification").train()
    batch = {name: torch.tensor(np.asarray(ids, np.int64)) for name, ids in golden.batch.items()}
    model(**batch, labels=torch.zeros(len(golden.batch["input_ids"]), dtype=torch.long)).loss.backward()
    own = {name: parameter.grad for name, parameter in model.named_parameters() if f"{NAME}." in name}
    assert {name.rpartition(".")[2] for name in own} == {"left", "right", "values"}
    assert all(bool(grad.abs().sum() > 0) for grad in own.values())


def test_devices(tmp_path: Path):
    golden = load_golden("bert_base")
    folder = saved_in_kind(golden.checkpoint, STEP, tmp_path / "small")
    assert {str(tensor.device) for tensor in load(folder, device_map="cpu").state_dict().values()} == {"cpu"}
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = load(folder).to("cuda")
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cuda"}
    batch = {name: torch.tensor(np.asarray(ids, np.int64)).to("cuda") for name, ids in golden.batch.items()}
    with torch.no_grad():
        states = model(**batch).last_hidden_state.cpu().numpy()
    assert_near(states, hidden(of_file(golden, folder)), golden, 1e-4)


# Refusals


def test_what_is_not_supported_is_refused_in_a_sentence(tmp_path: Path):
    folder = saved_in_kind(load_golden("bert_base").checkpoint, GROUPS, tmp_path / "small")
    model = load(folder)
    with pytest.raises(NotImplementedError, match="can't save what lpjax compressed; copy its folder"):
        model.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(TypeError, match="only multiplied or looked up; relu needs a dense one"):
        torch.relu(model.get_submodule(NAME))
    with pytest.raises(ValueError, match="a model that lpjax compressed does not take variant"):
        load(folder, variant="fp16")


Tensors = dict[str, np.ndarray]


def flip(name: str, place: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name][place] ^= 0xFF

    return change


def put(name: str, place: Any, value: Any) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name][place] = value

    return change


DAMAGE: dict[str, tuple[str, Callable[[Tensors], Any], str]] = {
    "no norm": (GROUPS, lambda t: t.pop("embeddings.LayerNorm.weight"), "it lacks embeddings.LayerNorm.weight"),
    "no codes": (GROUPS, lambda t: t.pop(f"{NAME}.codes"), f"{NAME}, which has the parts scales, is refused"),
    "no scales": (GROUPS, lambda t: t.pop(f"{NAME}.scales"), f"{NAME}, which has the parts codes, is refused"),
    "no matrix": (GROUPS, lambda t: [t.pop(f"{NAME}.{part}") for part in ("codes", "scales")], f"it lacks {NAME}"),
    "both": (GROUPS, lambda t: t.update({NAME: np.ones((12, 12), "f4")}), "expected .* and nothing beside it"),
    "another mark": (GROUPS, flip(f"{NAME}.codes", 0), "its codes are of version"),
    "another version": (GROUPS, flip(f"{NAME}.codes", 3), "its codes are of version 254"),
    "another axis": (GROUPS, flip(f"{NAME}.codes", 4), "its header is damaged"),
    "a code": (GROUPS, flip(f"{NAME}.codes", -1), "checksum|does not end|follow|initial|truncated"),
    "cut short": (GROUPS, lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"][:60]}), "header|truncated"),
    "infinite scales": (GROUPS, put(f"{NAME}.scales", 0, np.inf), "its scales are .* finite"),
    "scales too many": (GROUPS, lambda t: t.update({f"{NAME}.scales": np.ones((12, 9), "f2")}), "its scales are"),
    "steps of another length": (STEP, lambda t: t.update({f"{NAME}.steps": np.ones(13, "f2")}), "its steps are"),
    "huge scales": (
        STEP,
        lambda t: t.update({f"{NAME}.scales": np.full((12, 1), 1e38, "f4"), f"{NAME}.steps": np.full(12, 1e38, "f4")}),
        "more than torch.float32 can hold",
    ),
    "codes of another matrix": (
        GROUPS,
        lambda t: t.update({f"{NAME}.{part}": t[f"{TABLE}.{part}"] for part in ("codes", "scales")}),
        r"its codes have the shape \(29, 12\), expected at most 12",
    ),
    "no left": ("factored", lambda t: t.pop(f"{NAME}.left"), f"{NAME}, which has the parts right, is refused"),
    "another rank": ("factored", lambda t: t.update({f"{NAME}.left": np.ones((12, 4), "f4")}), "do not fit"),
    "another shape": ("factored", lambda t: t.update({f"{NAME}.left": np.ones((13, 5), "f4")}), r"it is \(13, 12\)"),
    "NaN": ("factored", put(f"{NAME}.left", (0, 0), np.nan), f"NaN or infinity in {NAME}.left"),
    "NaN in a bias": ("factored", put("embeddings.LayerNorm.bias", 0, np.nan), "NaN or infinity in embeddings"),
    "a norm of another shape": (
        "factored",
        lambda t: t.update({"embeddings.LayerNorm.bias": np.ones(13, "f4")}),
        "size mismatch for embeddings.LayerNorm.bias",
    ),
    "no values": (ENTRIES, lambda t: t.pop(f"{NAME}.values"), "lack values, columns or starts"),
    "starts that fall": (ENTRIES, put(f"{NAME}.starts", 1, 10_000), "the starts of its single entries are damaged"),
    "fewer values": (ENTRIES, lambda t: t.update({f"{NAME}.values": t[f"{NAME}.values"][:-1]}), "starts of its single"),
    "columns outside": (ENTRIES, put(f"{NAME}.columns", 0, 12), "the columns of its single entries are damaged"),
    "a column twice": (ENTRIES, put(f"{NAME}.columns", slice(None), 3), "the columns of its single entries are"),
    "no scale": ("int8", lambda t: t.pop(f"{NAME}.left_scale"), f"{NAME}, .* is refused"),
    "a scale too many": ("int8", lambda t: t.update({f"{NAME}.left_scale": np.ones(6, "f4")}), "its scale"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(damage: str, tmp_path: Path):
    kind, change, message = DAMAGE[damage]
    folder = saved_in_kind(load_golden("bert_base").checkpoint, kind, tmp_path / "small")
    path = folder / "lpjax.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path)[0].items()}
    change(tensors)
    path.unlink()
    write_tensors(path, tensors.items())
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path):
    folder = saved_in_kind(load_golden("bert_base").checkpoint, GROUPS, tmp_path / "small")
    path = folder / "lpjax.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match="Error while deserializing header"):
        load(folder)
    path.unlink()
    with pytest.raises(OSError, match=r"lpjax.safetensors"):
        load(folder)


# Without lpjax


BLOCKED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lpjax", "jax", "jaxlib", "jaxtyping"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
import torch

folder, out = sys.argv[1:3]
"""
BY_AUTO = """
import transformers
model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
"""
BY_FILE = """
sys.path.insert(0, folder)
from modeling_lpjax import load_factored
model = load_factored(folder)
"""
SAVE = """
with torch.no_grad():
    batch = {name: torch.from_numpy(ids) for name, ids in np.load(f"{out}/batch.npz").items()}
    np.save(f"{out}/logits.npy", model(**batch).logits.numpy())
assert not {"lpjax", "jax", "jaxtyping"} & {name.split(".")[0] for name in sys.modules}
"""


@pytest.mark.parametrize("code", [BY_AUTO, BY_FILE], ids=["auto", "load_factored"])
def test_neither_lpjax_nor_jax_is_needed(code: str, tmp_path: Path):
    golden = load_golden("bert_classifier")
    folder = saved_in_kind(golden.checkpoint, STEP, tmp_path / "small")
    np.savez(tmp_path / "batch.npz", **{name: np.asarray(ids, np.int64) for name, ids in golden.batch.items()})
    variables = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    variables["PYTHONPATH"] = ""
    command = [sys.executable, "-c", BLOCKED + code + SAVE, str(folder), str(tmp_path)]
    run = subprocess.run(command, env=variables, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    again = of_file(golden, folder)
    assert_near(np.load(tmp_path / "logits.npy"), heads.run(again.checkpoint.params, again), golden)


def test_only_the_files_are_needed(tmp_path: Path):
    """A user may copy them out of the folder."""
    folder = saved_in_kind(load_golden("bert_base").checkpoint, "factored", tmp_path / "small")
    (tmp_path / "copy").mkdir()
    for path in [*folder.glob("*.py")]:
        shutil.move(path, tmp_path / "copy" / path.name)
    sys.path.insert(0, str(tmp_path / "copy"))
    try:
        spec = importlib.util.find_spec("modeling_lpjax")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(tmp_path / "copy"))
        for name in ("lpjax_weights", "lpjax_codes"):
            sys.modules.pop(name, None)
    golden = load_golden("bert_base")
    assert_near(ask(module.load_factored(folder), golden.batch), hidden(of_file(golden, folder)), golden)


# sentence-transformers


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders that sentence-transformers saved, by case."""
    pytest.importorskip("sentence_transformers")
    from experiments.sentence_vectors import CASES, make_folder, make_net

    place = tmp_path_factory.mktemp("encoders")
    net = make_net(place / "net")
    return {case: make_folder(CASES[case], net, place / f"case {i}") for i, case in enumerate(SENTENCE_CASES)}


@pytest.mark.parametrize("case", SENTENCE_CASES)
@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_makes_the_vectors_of_lpjax(
    case: str, kind: str, encoders: dict[str, Path], tmp_path: Path
):
    from sentence_transformers import SentenceTransformer

    from experiments.sentence_vectors import texts
    from lpjax.evaluation import embed_sentences

    small = saved_in_kind(load_checkpoint(encoders[case]), kind, tmp_path / "small")
    model = SentenceTransformer(str(small), trust_remote_code=True, device="cpu")
    vectors = model.encode(texts(), show_progress_bar=False)
    expected = embed_sentences(load_checkpoint(small), texts()).vectors
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-5)


def test_sentence_transformers_refuses_it_without_trust(encoders: dict[str, Path], tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    small = saved_in_kind(load_checkpoint(encoders["mean, Normalize"]), GROUPS, tmp_path / "small")
    with pytest.raises(OSError, match=r"no file named|does not appear to have"):
        SentenceTransformer(str(small), device="cpu")


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_a_plan_for_a_size(share: float, tmp_path: Path):
    """What `lpjax compress --size` writes: rotated tables, steps, and kernels in groups."""
    from tests.helpers.rounding import random_net

    net = random_net(500)
    small = lpjax.compress(net.params, plan=lpjax.plan_for_size(net.params, share)).params
    save_checkpoint(dataclasses.replace(net, params=small), tmp_path / "small")
    rng = np.random.default_rng(0)
    batch = {"input_ids": rng.integers(0, 500, (2, 7)), "attention_mask": np.ones((2, 7), int)}
    golden = Golden(load_checkpoint(tmp_path / "small"), batch, np.zeros(0), None)
    assert_near(ask(load(tmp_path / "small"), batch), hidden(golden), golden, 1e-4)


def test_goldens_are_there():
    assert all((GOLDENS / name).is_dir() for name in (*BASES, *WITH_HEAD))
