"""Metadata that a card takes from the card of the source model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

from lpjax._files.reading import check_length
from lpjax.checkpoint.cards import CARD, CARD_LIMIT, wrote_card
from lpjax.checkpoint.error import printable
from lpjax.checkpoint.links import LinkError, check_inside
from lpjax.checkpoint.source import HUB_ID, hub_id

_KEPT = ("language", "license", "license_name", "license_link", "datasets")
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
_log = logging.getLogger("lpjax")


class Source(NamedTuple):
    """The model that a folder was made from, as the hub knows it.

    Attributes:
        base_model: id of the base model on the hub, or several; None if it is not known.
        relation: relation of the source to the base model; None if it is that model, or lpjax made it from that.
        pipeline_tag: pipeline tag of the source's card.
        kept: metadata that also hold for models made from the source, such as the license.
    """

    base_model: str | list[str] | None
    relation: str | None
    pipeline_tag: str | None
    kept: dict[str, Any]

    @property
    def name(self) -> str | None:
        """Name of the base model, the first of several."""
        names = self.base_model
        return names if isinstance(names, str) else next(iter(names or ()), None)


def read_source(folder: Path | None) -> Source:
    """Read the source of a checkpoint from its folder; nothing is known for None."""
    if folder is None:
        return Source(None, None, None, {})
    data = _metadata(folder)
    texts = {key: text for key in (*_KEPT, "base_model") if (text := _texts(data.get(key)))}
    base, relation, pipeline = texts.pop("base_model", None), data.get("base_model_relation"), data.get("pipeline_tag")
    if repo := hub_id(folder):
        base, relation = repo, None
    elif base is None or not all(map(HUB_ID.fullmatch, [base] if isinstance(base, str) else base)):
        base, relation = None, None
    elif relation not in _RELATIONS:
        # As the hub assumes: a person's model with a base model is a finetune of it.
        relation = None if wrote_card(folder / CARD) else "finetune"
    return Source(base, relation, pipeline if isinstance(pipeline, str) else None, texts)


def _metadata(folder: Path) -> dict[str, Any]:
    from huggingface_hub import metadata_load

    path = folder / CARD
    if not path.is_file():
        return {}
    try:
        check_inside(path, folder)
        check_length(path.stat().st_size, CARD_LIMIT)
        return metadata_load(path) or {}
    except LinkError:
        return {}
    except Exception as error:  # of YAML, which raises many kinds
        reason = f"{path} can't be read, so its license is not in the new card: {type(error).__name__}"
        _log.warning(printable(reason))
        return {}


def _texts(value: Any) -> str | list[str] | None:
    """A text or a list of texts in a card, which is not trusted; None for anything else."""
    if isinstance(value, list):
        return [text for entry in value[:200] if isinstance(text := _texts(entry), str)]
    # YAML 1.1 reads the language `no` as false.
    value = "no" if value is False else value
    return value[:500] if isinstance(value, str) else None
