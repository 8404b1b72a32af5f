"""The origin of a calibration, and whether it belongs to a given model."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from lpjax._provenance import run_record
from lpjax._tree import walk
from lpjax.checkpoint import Checkpoint
from lpjax.weighting.statistics import Calibration
from lpjax.weights.dispatch import is_weight


def with_provenance(
    calibration: Calibration,
    checkpoint: Checkpoint,
    first: Sequence[str],
    second: Sequence[str] | None,
    *,
    model: str,
    source: str,
) -> Calibration:
    """`calibration` with the names of model and texts, a digest of the texts, and checksums of the matrices.

    Args:
        calibration: result of `calibrate` for this checkpoint and these texts.
        checkpoint, first, second: the model and the texts.
        model, source: names of the model and of the texts.
    """
    digest = hashlib.sha256("\n".join([*first, *(second or ())]).encode("utf-8", "replace")).hexdigest()
    provenance = {"model": model, "source": source, "sha256": digest, **run_record(calibration.seed)}
    provenance["weights"] = _checksums(checkpoint.params, calibration.statistics)
    return dataclasses.replace(calibration, provenance=provenance)


def origin(calibration: Calibration) -> dict[str, str]:
    """The origin of a calibration, for the record of a model compressed with it."""
    named = {key: calibration.provenance[key] for key in ("model", "source", "sha256") if key in calibration.provenance}
    counts = {key: getattr(calibration, key) for key in ("texts", "tokens", "target", "seed")}
    return {key: str(value) for key, value in (named | counts).items()}


def check_same_net(calibration: Calibration, checkpoint: Checkpoint, name: object) -> None:
    """Refuse the calibration of another model, or of this one before it was trained further.

    Args:
        calibration: calibration from a file; not checked if it has no checksums.
        checkpoint: the model.
        name: name of the calibration, for the message.

    Raises:
        ValueError: naming the first matrix that differs.
    """
    known = calibration.provenance.get("weights")
    if not isinstance(known, dict):
        return
    for path, checksum in _checksums(checkpoint.params, known).items():
        if checksum != known[path]:
            made = calibration.provenance.get("model", "another model")
            raise ValueError(
                f"{name} was made from {made}, whose {path} differs from this model's; calibrate the model to be "
                "compressed, in the same dtype: lpjax calibrate"
            )


def _checksums(params: Any, paths: Collection[str]) -> dict[str, int]:
    """CRC-32 of the dense matrices among `paths`."""
    dense = {path: leaf for path, leaf in walk(params) if path in paths and not is_weight(leaf)}
    return {path: zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data) for path, leaf in dense.items()}
