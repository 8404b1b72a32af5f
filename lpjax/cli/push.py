"""`lpjax push`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lpjax.cli import _options as opt
from lpjax.cli._errors import misuse, name_options
from lpjax.cli._output import show

EXAMPLE = "lpjax push smaller me/smaller --private"


def push(
    context: typer.Context,
    out: Annotated[Path, typer.Argument(help="Folder that lpjax wrote.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")],
    private: Annotated[bool, opt.flag("--private", "Make the repository private.")] = False,
    replace_card: Annotated[
        bool, opt.flag("--replace-card", "Replace the repository's README.md even if a person wrote it.")
    ] = False,
    dry_run: Annotated[bool, opt.flag("--dry-run", "Show what would be uploaded; needs no network.")] = False,
    as_json: opt.AsJson = False,
) -> None:
    """Upload a folder to the Hugging Face Hub, with its model card."""
    from lpjax.hub import check_repo, upload_of
    from lpjax.report.tables import make_table

    with misuse():
        check_repo(repo)
        if not out.is_dir():
            raise FileNotFoundError(f"there is no folder {out}; expected one that lpjax wrote")
    upload = upload_of(out, repo)
    sizes = upload.sizes()
    notes = [] if "README.md" in sizes else [f"{out} has no README.md: an earlier lpjax wrote it"]
    address: dict[str, str] = {}
    if not dry_run:
        sent = upload.send(private=private, replace_card=replace_card)
        sizes, address = {name: sizes[name] for name in sent.names}, {"address": sent.address}
        notes += [name_options(note, context) for note in sent.notes]
    result = {"out": str(out), "repo": repo, "private": private, "dry_run": dry_run, "bytes": sum(sizes.values()),
              "files": [{"name": name, "bytes": size} for name, size in sizes.items()]}  # fmt: skip
    table = make_table(["file", "kB"], [(name, f"{size / 1e3:,.1f}") for name, size in sizes.items()])
    done = f"would be uploaded to {repo}" if dry_run else f"uploaded: {address['address']}"
    total = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, {done}"
    show(as_json, result | address | {"notes": notes}, table, total, *notes)
