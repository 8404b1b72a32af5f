"""Factoring the matrices of a checkpoint of a model that lpjax does not run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects
from safetensors import safe_open
from safetensors.numpy import save_file

import lpjax
from lpjax.checkpoint.safetensors import read_tensors, write_tensors
from tests.conftest import Command

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
LAYER = "model.layers.{}.{}.weight"
FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"


def tensors_of(layers: int = 2) -> dict[str, np.ndarray]:
    """The tensors of a Llama, and others of odd kinds."""
    rng = np.random.default_rng(0)

    def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
        return rng.normal(size=shape).astype(dtype)

    tensors = {"model.embed_tokens.weight": normal(40, 12, dtype=BFLOAT16)}
    for i in range(layers):
        tensors[LAYER.format(i, "self_attn.q_proj")] = normal(17, 11, dtype=np.float16)
        tensors[LAYER.format(i, "mlp.up_proj")] = normal(23, 11)
        tensors[LAYER.format(i, "mlp.down_proj")] = normal(11, 23)
        tensors[LAYER.format(i, "input_layernorm")] = normal(11, dtype=BFLOAT16)
    tensors["model.rank_one.weight"] = np.outer(normal(17), normal(11))
    tensors["model.zeros.weight"] = np.zeros((17, 11), np.float32)
    tensors["conv.weight"] = normal(5, 4, 3)
    tensors["position_ids"] = np.arange(12).reshape(3, 4)
    tensors["scale"] = np.float32(2.5).reshape(())
    tensors["empty.weight"] = np.zeros((0, 7), np.float32)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    return tensors


def write_folder(folder: Path, tensors: dict[str, np.ndarray], **config: Any) -> Path:
    """The tensors in two shards, as transformers writes them."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    shards = {FIRST: names[: len(names) // 2], SECOND: names[len(names) // 2 :]}
    for file, own in shards.items():
        (folder / file).unlink(missing_ok=True)
        write_tensors(folder / file, [(name, tensors[name]) for name in own])
    index = {
        "metadata": {"total_size": sum(tensor.nbytes for tensor in tensors.values())},
        "weight_map": {name: file for file, own in shards.items() for name in own},
    }
    (folder / INDEX).write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    (folder / "generation_config.json").write_text('{"do_sample": true}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    return folder


def read(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the shards that the index lists, by safetensors' own reader of names and shapes."""
    names = json.loads((folder / INDEX).read_text())["weight_map"]
    tensors = {}
    for file in dict.fromkeys(names.values()):
        own = read_tensors(folder / file)[0]
        with safe_open(folder / file, "np") as opened:
            assert opened.metadata() == {"format": "pt"}
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        assert shapes == {name: tensor.shape for name, tensor in own.items()}
        assert {name for name, shard in names.items() if shard == file} == own.keys()
        tensors |= own
    assert tensors.keys() == names.keys()
    return tensors


def same(first: np.ndarray, other: np.ndarray) -> bool:
    return first.dtype == other.dtype and first.shape == other.shape and first.tobytes() == other.tobytes()


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "llama", tensors_of())


def test_layout_is_kept_and_what_is_no_matrix_bit_for_bit(llama: Path, tmp_path: Path):
    out = tmp_path / "out"
    lpjax.compress_weights(llama, out, select="proj", keep=0.6, solver="svd")
    before, after, factors = read(llama), read(out), read(out / "factors")
    assert {path.name for path in out.iterdir()} == {
        FIRST, SECOND, INDEX, "config.json", "generation_config.json", "tokenizer.json", "factors", "README.md",
        "lpjax_weights_only.json",
    }  # fmt: skip
    assert {path.name for path in (out / "factors").iterdir()} == {FIRST, SECOND, INDEX}
    for name in ("config.json", INDEX, "generation_config.json"):
        assert (out / name).read_bytes() == (llama / name).read_bytes()
    assert after.keys() == before.keys()
    for name, tensor in before.items():
        assert (after[name].dtype, after[name].shape) == (tensor.dtype, tensor.shape)
        if "proj" not in name:
            assert same(after[name], tensor)
            assert same(factors[name], tensor)
    total = json.loads((out / "factors" / INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(tensor.nbytes for tensor in factors.values())


@pytest.mark.parametrize("solver", ["svd", "lewis", "irls_rows"])
def test_factors_are_those_of_the_solver(llama: Path, tmp_path: Path, solver: str):
    made = lpjax.compress_weights(llama, tmp_path / "out", select="up_proj|q_proj", rank=3, solver=solver)
    before, after, factors = read(llama), read(tmp_path / "out"), read(tmp_path / "out" / "factors")
    assert len(made.records) == 4
    for record in made.records:
        left, right = factors[f"{record.name}.left"], factors[f"{record.name}.right"]
        assert left.dtype == right.dtype == before[record.name].dtype
        assert left.shape[1] == right.shape[0] == record.rank == 3
        product = (left.astype(np.float64) @ right.astype(np.float64)).astype(left.dtype)
        assert same(after[record.name], product)
        eps = np.finfo(left.dtype).eps
        matrix = before[record.name].astype(np.float32)
        solution = lpjax.SOLVERS[solver](matrix, 3)
        own = np.asarray(solution.left) @ np.asarray(solution.right)
        scale = np.abs(matrix).max()
        assert np.abs(product.astype(np.float32) - own).max() < 20 * max(eps, 1e-5) * scale
        objective = "rows" if solver == "irls_rows" else "entries"
        error = lpjax.lp_norm(matrix - product.astype(np.float32), made.p, objective)
        assert record.error == pytest.approx(float(error / lpjax.lp_norm(matrix, made.p, objective)), rel=0.01)


@pytest.mark.parametrize(("dtype", "accuracy"), [(np.float32, 1e-5), (np.float16, 5e-3), (BFLOAT16, 4e-2)])
def test_the_svd_is_numpys(tmp_path: Path, dtype: Any, accuracy: float):
    matrix = np.random.default_rng(1).normal(size=(29, 13)).astype(dtype)
    source = write_folder(tmp_path / "net", {"norm": np.ones(3, np.float32), "a.weight": matrix})
    made = lpjax.compress_weights(source, tmp_path / "out", select="a", rank=4, solver="svd")
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    best = (u[:, :4] * s[:4]) @ vt[:4]
    product = read(tmp_path / "out")["a.weight"]
    assert np.abs(product.astype(np.float64) - best).max() < accuracy
    assert made.records[0].error == pytest.approx(np.linalg.norm(s[4:]) / np.linalg.norm(s), rel=accuracy)


def test_rank_one_zeros_and_tied_names(llama: Path, tmp_path: Path):
    lpjax.compress_weights(llama, tmp_path / "out", select=["rank_one", "zeros", "embed", "head"], rank=2)
    before, after, factors = read(llama), read(tmp_path / "out"), read(tmp_path / "out" / "factors")
    np.testing.assert_allclose(after["model.rank_one.weight"], before["model.rank_one.weight"], atol=1e-5)
    assert not after["model.zeros.weight"].any()
    assert np.isfinite(factors["model.zeros.weight.left"]).all()
    assert same(after["lm_head.weight"], after["model.embed_tokens.weight"])


def test_each_matrix_is_solved_once(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from lpjax.compression import weights_only

    solved = []
    compress = weights_only.compress
    monkeypatch.setattr(weights_only, "compress", lambda tree, *a, **b: solved.extend(tree) or compress(tree, *a, **b))
    steps = []
    made = lpjax.compress_weights(
        llama, tmp_path / "out", select="proj", rank=2, solver="svd", progress=lambda *step: steps.append(step)
    )
    assert solved == [record.name for record in made.records] == [name for _, _, name in steps]
    assert [(done, total) for done, total, _ in steps] == [(i + 1, 6) for i in range(6)]


def test_the_record_and_the_kinds(llama: Path, tmp_path: Path):
    out = tmp_path / "out"
    made = lpjax.compress_weights(llama, out, select=["proj", "embed"], keep=0.5, solver="svd")
    kinds = {kind.name: kind for kind in made.kinds}
    assert list(kinds) == ["model.embed_tokens.weight", *(LAYER.format("*", f"{name}_proj") for name in
                           ("self_attn.q", "mlp.up", "mlp.down"))]  # fmt: skip
    up = kinds["model.layers.*.mlp.up_proj.weight"]
    rank = lpjax.rank_for((23, 11), 0.5)
    assert (up.count, up.shape, up.rank) == (2, (23, 11), rank)
    assert (up.bytes_before, up.bytes_after) == (2 * 23 * 11 * 4, 2 * rank * 34 * 4)
    files = [out / "factors" / name for name in (FIRST, SECOND)]
    assert made.bytes_after == sum(file.stat().st_size for file in files)
    assert made.bytes_before == sum((llama / name).stat().st_size for name in (FIRST, SECOND))
    record = json.loads((out / "lpjax_weights_only.json").read_text())
    assert record["schema"] == "lpjax-weights-only/1"
    assert (record["method"], record["p"], record["seed"]) == ("svd", 2.0, None)
    assert "lpjax" in record["versions"]
    assert [entry["name"] for entry in record["records"]] == [layer.name for layer in made.records]
    assert record["records"][0]["rank"] == made.records[0].rank
    assert "`model.layers.*.mlp.up_proj.weight` | 2 | 23×11" in (out / "README.md").read_text()


def test_what_gets_no_smaller_stays_dense(llama: Path, tmp_path: Path):
    made = lpjax.compress_weights(llama, tmp_path / "out", select="up_proj|q_proj", rank=7, solver="svd")
    ranks = {record.name: record.rank for record in made.records}
    query = LAYER.format(0, "self_attn.q_proj")
    assert ranks[LAYER.format(0, "mlp.up_proj")] == 7
    assert ranks[query] is None
    assert same(read(tmp_path / "out")[query], tensors_of()[query])


def test_by_default_large_matrices_are_factored(tmp_path: Path):
    rng = np.random.default_rng(0)
    large, thin = rng.normal(size=(128, 64)), rng.normal(size=(8192, 1))
    tensors = {"large": large, "thin": thin, "small": large[:127], "stack": large.reshape(2, 64, 64)}
    source = write_folder(tmp_path / "net", {name: array.astype(np.float32) for name, array in tensors.items()})
    made = lpjax.compress_weights(source, tmp_path / "out", keep=0.1, solver="svd")
    assert [record.name for record in made.records] == ["large"]


@pytest.mark.parametrize("name", ["model.safetensors", "diffusion_pytorch_model.safetensors"])
def test_one_file_of_any_name(tmp_path: Path, name: str):
    source = tmp_path / "net"
    source.mkdir()
    (source / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    save_file({"a": np.eye(9, 5, dtype=np.float32)}, source / name, metadata={"format": "pt", "more": "kept"})
    lpjax.compress_weights(source, tmp_path / "out", select="a", rank=1, solver="svd")
    for file in (tmp_path / "out" / name, tmp_path / "out" / "factors" / name):
        assert read_tensors(file)[1] == {"format": "pt", "more": "kept"}
    assert read_tensors(tmp_path / "out" / "factors" / name)[0].keys() == {"a.left", "a.right"}


def test_a_net_that_lpjax_knows_loads_dense(folder: Path, tmp_path: Path):
    lpjax.compress_weights(folder, tmp_path / "out", select="intermediate", keep=0.5, solver="svd")
    before, after = lpjax.load_checkpoint(folder), lpjax.load_checkpoint(tmp_path / "out")
    assert (after.config, after.compression) == (before.config, None)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").exists()
    lpjax.compress_weights(tmp_path / "out", tmp_path / "again", select="intermediate", keep=0.5, solver="svd")


def test_others_are_refused_with_what_can_be_done(llama: Path, tmp_path: Path):
    lpjax.compress_weights(llama, tmp_path / "out", select="proj", keep=0.5, solver="svd")
    for net in (llama, tmp_path / "out"):
        with pytest.raises(
            lpjax.CheckpointError, match=r"'llama', expected one of .*; `lpjax compress --weights-only`"
        ):
            lpjax.load_checkpoint(net)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"keep": 0.5, "rank": 3}, "exactly one"),
        ({}, "exactly one"),
        ({"keep": 1.5}, "`keep` is 1.5"),
        ({"rank": 0}, "`rank`"),
        ({"rank": 2, "solver": "svdd"}, "`solver`"),
        ({"rank": 2, "tol": -1.0}, "`tol`"),
        ({"rank": 2}, r"no matrix of .* has 8192 entries; .* such as model\.embed_tokens\.weight"),
        ({"rank": 2, "select": "q_prok"}, r"no floating-point matrix; there are .*\.self_attn\.q_proj\.weight"),
        ({"rank": 2, "select": "layernorm"}, "no floating-point matrix"),
        ({"rank": 2, "select": "("}, "not a valid regular expression"),
        ({"rank": 2, "select": []}, "`select` is empty"),
        ({"rank": 9, "select": "proj"}, "`rank` is 9: no layer gets smaller: a pair of rank 9"),
    ],
)  # fmt: skip
def test_misuse_is_refused_before_any_work(llama: Path, tmp_path: Path, arguments: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        lpjax.compress_weights(llama, tmp_path / "out", **arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["llama"]


@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_what_is_not_finite_is_refused_by_name(tmp_path: Path, number: float):
    tensors = tensors_of()
    tensors[LAYER.format(1, "mlp.up_proj")][3, 4] = number
    source = write_folder(tmp_path / "net", tensors)
    with pytest.raises(lpjax.CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight \(1 of 253\)"):
        lpjax.compress_weights(source, tmp_path / "out", select="proj", rank=2)
    assert not (tmp_path / "out").exists()
    lpjax.compress_weights(source, tmp_path / "out", select="q_proj", rank=2, solver="svd")  # not that matrix


@pytest.mark.parametrize("config", [{"quantization_config": {"quant_method": "gptq"}}, {"lpjax": {"ranks": {}}}])
def test_weights_that_are_codes_are_refused(llama: Path, tmp_path: Path, config: dict[str, Any]):
    (llama / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    with pytest.raises(lpjax.CheckpointError, match=r"quantization_config|lpjax export"):
        lpjax.compress_weights(llama, tmp_path / "out", rank=2)


def test_damaged_folders_are_refused(llama: Path, tmp_path: Path):
    (llama / SECOND).rename(tmp_path / SECOND)
    with pytest.raises(lpjax.CheckpointError, match="shards that are not there"):
        lpjax.compress_weights(llama, tmp_path / "out", rank=2)
    (llama / INDEX).unlink()
    (llama / FIRST).unlink()
    with pytest.raises(lpjax.CheckpointError, match=r"pytorch_model\.bin, a pickle"):
        lpjax.compress_weights(llama, tmp_path / "out", rank=2)


def test_a_name_that_a_factor_would_have_is_refused(tmp_path: Path):
    source = write_folder(tmp_path / "net", {"a": np.eye(9, dtype=np.float32), "a.left": np.ones(2, np.float32)})
    with pytest.raises(ValueError, match="another tensor has the name of its factor"):
        lpjax.compress_weights(source, tmp_path / "out", select="a$", rank=1)


def test_out_is_not_in_the_source_and_not_replaced_unasked(llama: Path, tmp_path: Path):
    for out in (llama, llama / "out", tmp_path):
        with pytest.raises(FileExistsError):
            lpjax.compress_weights(llama, out, select="proj", rank=2, overwrite=True)
    lpjax.compress_weights(llama, tmp_path / "out", select="up_proj", rank=2, solver="svd")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        lpjax.compress_weights(llama, tmp_path / "out", select="proj", rank=2)
    made = lpjax.compress_weights(llama, tmp_path / "out", select="down_proj", rank=2, solver="svd", overwrite=True)
    assert {record.name for record in made.records} == {LAYER.format(i, "mlp.down_proj") for i in range(2)}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [1, 5])
def test_an_interrupted_run_leaves_what_was_there(llama: Path, tmp_path: Path, interruption: Any, at: int):
    def interrupt(done: int, _: int, __: str) -> None:
        if done == at:
            raise interruption

    for there in (False, True):
        if there:
            lpjax.compress_weights(llama, tmp_path / "out", select="up_proj", rank=2, solver="svd")
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(interruption):
            lpjax.compress_weights(
                llama, tmp_path / "out", select="proj", rank=2, solver="svd", overwrite=True, progress=interrupt
            )
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["llama", "out"][: 1 + there]


def test_code_beside_the_config_is_copied_and_not_run(llama: Path, tmp_path: Path):
    (llama / "modeling_own.py").write_text("raise SystemExit")
    lpjax.compress_weights(llama, tmp_path / "out", select="up_proj", rank=2, solver="svd")
    assert not (tmp_path / "out" / "modeling_own.py").exists()  # nothing names it
    (llama / "config.json").write_text('{"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}}')
    lpjax.compress_weights(llama, tmp_path / "out", select="up_proj", rank=2, solver="svd", overwrite=True)
    assert (tmp_path / "out" / "modeling_own.py").exists()


@pytest.fixture
def repository(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """owner/llama on a hub whose snapshots hold the files that patterns name, as huggingface_hub chooses them."""
    cache = tmp_path / "models--owner--llama" / "snapshots" / "f00"

    def snapshot_download(repo: str, *, allow_patterns: Any, ignore_patterns: Any, **_: Any) -> str:
        assert repo == "owner/llama"
        there = [path.relative_to(llama).as_posix() for path in llama.rglob("*") if path.is_file()]
        for name in filter_repo_objects(there, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns):
            (cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(llama / name, cache / name)
        return str(cache)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.chdir(tmp_path)
    return llama


TEMPLATES = {"chat_template.jinja": "{{ messages }}", "additional_chat_templates/tool_use.jinja": "{{ tools }}"}


def write_texts(folder: Path, texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("by_command", [False, True], ids=["python", "command"])
def test_code_and_templates_of_a_repository_come_along(
    repository: Path, command: Command, tmp_path: Path, by_command: bool
):
    code = {name: f"raise SystemExit({name!r})" for name in ("modeling_own.py", "tokenization_own.py")}
    other = {"onnx/tool.py": "", "pytorch_model.bin": "", "notes.md": ""}
    write_texts(repository, code | TEMPLATES | other | {"own.tiktoken": "AA== 0"})
    write_texts(repository, {"config.json": '{"model_type": "own", "auto_map": {"AutoModel": "modeling_own.Own"}}'})
    options = {"select": "up_proj", "rank": 2, "solver": "svd"}
    if by_command:
        status, _, errors = command("compress", "owner/llama", tmp_path / "out", "--weights-only", "--layers",
                                    "up_proj", "--rank", 2, "--method", "svd")  # fmt: skip
        assert status == 0, errors
    else:
        lpjax.compress_weights("owner/llama", tmp_path / "out", **options)
    out = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {*code, *TEMPLATES, "own.tiktoken"} <= out
    assert not other.keys() & out
    for name, text in (code | TEMPLATES).items():
        assert (tmp_path / "out" / name).read_text() == text
    assert "base_model: owner/llama" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("named_by", ["tokenizer_config.json", "nothing", "a damaged file"])
def test_code_that_is_not_named_stays_on_the_hub(repository: Path, tmp_path: Path, named_by: str):
    configs = {
        "tokenizer_config.json": '{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}}',
        "nothing": "{}",
        "a damaged file": '{"auto_map": ',
    }
    write_texts(repository, {"tokenization_own.py": "raise SystemExit", "tokenizer_config.json": configs[named_by]})
    lpjax.compress_weights("owner/llama", tmp_path / "out", select="up_proj", rank=2, solver="svd")
    named = named_by == "tokenizer_config.json"
    for folder in (tmp_path / "out", tmp_path / "models--owner--llama" / "snapshots" / "f00"):
        assert (folder / "tokenization_own.py").exists() == named


def test_a_net_that_lpjax_runs_is_fetched_without_code(repository: Path, tmp_path: Path):
    write_texts(repository, {"modeling_own.py": "", "config.json": '{"auto_map": {"AutoModel": "modeling_own.Own"}}'})
    with pytest.raises(lpjax.CheckpointError):
        lpjax.load_checkpoint("owner/llama")
    (snapshot,) = tmp_path.glob("models--*/snapshots/*")
    assert (snapshot / "tokenizer.json").exists()
    assert not (snapshot / "modeling_own.py").exists()


def test_weights_of_another_name_are_fetched(repository: Path, tmp_path: Path):
    for name in (FIRST, SECOND, INDEX):
        (repository / name).unlink()
    save_file({"a": np.eye(9, 5, dtype=np.float32)}, repository / "diffusion_pytorch_model.safetensors")
    lpjax.compress_weights("owner/llama", tmp_path / "out", select="a", rank=1, solver="svd")
    assert (tmp_path / "out" / "factors" / "diffusion_pytorch_model.safetensors").exists()


def test_the_card_keeps_the_license_and_a_persons_card_stays(llama: Path, tmp_path: Path):
    card = "---\nlicense: llama3\nbase_model: owner/llama\n---\n\n# Llama\n"
    (llama / "README.md").write_text(card)
    out = tmp_path / "out"
    lpjax.compress_weights(llama, out, select="up_proj", rank=2, solver="svd")
    made = (out / "README.md").read_text()
    assert "license: llama3" in made
    assert "base_model: owner/llama" in made
    assert (out / "README.source.md").read_text() == card
    (out / "README.md").write_text("# My own\n")
    lpjax.compress_weights(llama, out, select="up_proj", rank=3, solver="svd", overwrite=True)
    assert (out / "README.md").read_text() == "# My own\n"


@pytest.mark.parametrize("name", [INDEX, "config.json", "tokenizer.json"])
def test_links_that_lead_out_are_not_copied(llama: Path, tmp_path: Path, name: str):
    (llama / name).rename(tmp_path / name)
    (llama / name).symlink_to(tmp_path / name)
    steps = []
    with pytest.raises(lpjax.CheckpointError, match="leads out of its checkpoint"):
        lpjax.compress_weights(
            llama, tmp_path / "out", select="proj", rank=2, progress=lambda *step: steps.append(step)
        )
    assert not steps


_MEASURE = """
import re, sys
from pathlib import Path
import lpjax

found = []
def measure(*_):
    found.append(int(re.search(r"RssAnon:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]))
lpjax.compress_weights(sys.argv[1], sys.argv[2], keep=0.9, solver="svd", progress=measure)
print(max(found) - min(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's count of a process's own memory")
def test_memory_is_that_of_a_few_layers(tmp_path: Path):
    layer, layers = np.random.default_rng(0).normal(size=(64, 8192)).astype(np.float32), 40
    source = write_folder(tmp_path / "net", {f"layers.{i}.weight": layer for i in range(layers)})
    command = [sys.executable, "-c", _MEASURE, str(source), str(tmp_path / "out")]
    # Otherwise glibc keeps what is freed.
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    grown = int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=settings).stdout)
    assert 1024 * grown < 10 * layer.nbytes


@pytest.mark.filterwarnings("default")
def test_the_command_prints_kinds(command: Command, llama: Path, tmp_path: Path):
    options = ["--weights-only", "--layers", "up_proj,q_proj", "--keep", 0.6, "--method", "svd"]
    status, printed, errors = command("compress", llama, tmp_path / "out", *options)
    assert status == 0, errors
    assert "23×11" in printed
    assert "svd; error" in printed
    status, printed, _ = command("compress", llama, tmp_path / "out", *options, "--force", "--json")
    assert status == 0
    result = json.loads(printed)
    assert [(kind["count"], kind["shape"]) for kind in result["kinds"]] == [(2, [17, 11]), (2, [23, 11])]
    files = [tmp_path / "out" / "factors" / name for name in (FIRST, SECOND)]
    assert result["bytes_after"] == sum(file.stat().st_size for file in files)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--keep", 0.5, "--calibrate", "text.txt"], "--calibrate does not go with --weights-only"),
        (["--keep", 0.5, "--weighting", "fwsvd"], "--weighting does not go with --weights-only"),
        (["--budget", 0.5], "--budget does not go with --weights-only"),
        (["--plan", "plan.json"], "--plan does not go with --weights-only"),
        (["--size", "1MB"], "--size does not go with --weights-only"),
        (["--keep", 0.5, "--report"], "--report does not go with --weights-only"),
        ([], "--keep is None and --rank is None; expected exactly one of them"),
        (["--keep", 0.5, "--layers", "bias"], "--layers 'bias' is in the name of no floating-point matrix"),
        (["--keep", 0.5, "--method", "irls_rows", "--p", 0.5], "--p is 0.5"),
    ],
)  # fmt: skip
def test_the_command_refuses(command: Command, llama: Path, tmp_path: Path, options: list[Any], words: str):
    outcome = command("compress", llama, tmp_path / "out", "--weights-only", *options)
    assert outcome[0] == 2
    assert words in outcome[2]
    assert not (tmp_path / "out").exists()
