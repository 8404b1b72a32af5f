"""The files with which PyTorch loads a compressed folder without lpjax, and the entry of config.json for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lpjax.models.config import OWN_CODE

_ROOT = Path(__file__).parents[1]
_SOURCES = {
    f"{OWN_CODE}.py": _ROOT / "checkpoint" / "torch" / "modeling_lpjax.py",
    "lpjax_weights.py": _ROOT / "checkpoint" / "torch" / "lpjax_weights.py",
    "lpjax_codes.py": _ROOT / "weights" / "decoding.py",
}
TORCH_FILES = frozenset(_SOURCES)
"""Names of these files in a folder."""
AUTO_MAP = "auto_map"
"""Key of config.json: which class of which file transformers runs, with `trust_remote_code=True`."""

_HEADS = {
    "sequence": "ForSequenceClassification",
    "tokens": "ForTokenClassification",
    "spans": "ForQuestionAnswering",
    "words": "ForMaskedLM",
}


def torch_texts() -> dict[str, str]:
    """The files, by name."""
    return {name: path.read_text(encoding="utf-8") for name, path in _SOURCES.items()}


def auto_map(head: str | None) -> dict[str, str]:
    """Class of transformers -> the class of these files that stands in for it.

    Args:
        head: one of `HEADS`; None for a model without a head.
    """
    kinds = ("", _HEADS[head]) if head else ("",)
    return {f"AutoModel{kind}": f"{OWN_CODE}.LpjaxModel{kind}" for kind in kinds}


def others_code(entries: Any) -> dict[str, Any]:
    """The entries of an `auto_map` that lpjax did not write."""
    entries = entries if isinstance(entries, Mapping) else {}
    return {name: where for name, where in entries.items() if not str(where).startswith(f"{OWN_CODE}.")}
