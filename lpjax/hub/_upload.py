"""Uploading a folder that lpjax wrote to the Hugging Face Hub, in one commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lpjax._files.hub import first_line, out_of_reach
from lpjax._files.replacing import put_back
from lpjax.checkpoint import CheckpointError, holds_weights
from lpjax.checkpoint.cards import CARD, CARD_LIMIT, is_own_card, wrote_card
from lpjax.checkpoint.files import read_object
from lpjax.checkpoint.formats import CONFIG, FORMATS
from lpjax.checkpoint.links import check_inside, files_inside
from lpjax.checkpoint.source import HUB_ID
from lpjax.hub._loading import REPO

_MESSAGE = "Upload by lpjax"
"""Title of every commit by `Upload.send`."""


class Sent(NamedTuple):
    """A finished upload: the commit's address, the names of the files, and notes for the user."""

    address: str
    names: tuple[str, ...]
    notes: tuple[str, ...]


class Upload(NamedTuple):
    """The files to upload.

    Attributes:
        repo: repository, OWNER/NAME.
        files: name in the repository -> path of the file, or for the card its bytes, which name the repository.
    """

    repo: str
    files: dict[str, Path | bytes]

    def sizes(self) -> dict[str, int]:
        """Size of each file in bytes."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    def send(self, *, private: bool = False, replace_card: bool = False) -> Sent:
        """Upload the files.

        A card that was written or edited on the hub stays. A person's card that this function uploaded, and that nobody
        changed since, is replaced by a person's card, such as a corrected one, but not by lpjax's.

        Args:
            private: whether to make the repository private.
            replace_card: whether to replace the card on the hub, whoever wrote it.

        Raises:
            PermissionError: nobody is logged in.
            ConnectionError: the hub cannot be reached, or refuses.
            FileExistsError: `private` is set, but the repository exists and is public.
        """
        from huggingface_hub import CommitOperationAdd, HfApi, get_token
        from huggingface_hub.errors import RepositoryNotFoundError

        if away := out_of_reach():
            raise ConnectionError(f"the Hugging Face Hub could not be reached ({away}); nothing was uploaded")
        if not get_token():
            raise PermissionError("there is no token of the Hugging Face Hub; log in with `hf auth login`")
        api, files, notes = HfApi(), dict(self.files), []
        try:
            try:
                info = api.model_info(self.repo)
            except RepositoryNotFoundError:
                info = None
            if info is not None and private and not info.private:
                raise FileExistsError(f"{self.repo} is there and is public; choose another name, or omit `private`")
            there = {file.rfilename for file in (info.siblings or ())} if info is not None else set()
            if info is None:
                api.create_repo(self.repo, private=private or None)
            elif CARD in there and CARD in files and not replace_card and (reason := self._kept_card(api, info.sha)):
                del files[CARD]
                notes.append(f"{reason} and is kept; `replace_card` replaces it")
            suffixes = tuple(format.suffix for format in FORMATS.values())
            if others := sorted(name for name in there - files.keys() if name.endswith(suffixes)):
                notes.append(f"{self.repo} also holds other weights, which stay: {', '.join(others)}")
            operations = [
                CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
                for name, content in files.items()
            ]
            # With a parent, the hub refuses the commit if someone else has written there in the meantime.
            parent = None if info is None else info.sha
            commit = api.create_commit(self.repo, operations, commit_message=_MESSAGE, parent_commit=parent)
        except FileExistsError:
            raise
        except Exception as error:  # its class depends on the HTTP client of huggingface_hub
            raise ConnectionError(f"{self.repo} was not uploaded: {first_line(error)}") from error
        return Sent(str(commit.commit_url), tuple(files), tuple(notes))

    def _kept_card(self, api: Any, revision: str | None) -> str:
        """Why the card on the hub is not replaced; empty if it is."""
        path = Path(api.hf_hub_download(self.repo, CARD, revision=revision))
        there = path.read_bytes() if path.stat().st_size <= CARD_LIMIT else None
        content = self.files[CARD]
        content = content if isinstance(content, bytes) else content.read_bytes()
        if there is not None and (there == content or is_own_card(there)):
            return ""
        if is_own_card(content):
            return f"the {CARD} of {self.repo} was not written by lpjax"
        (file,) = api.get_paths_info(self.repo, CARD, expand=True, revision=revision)
        if file.last_commit is not None and file.last_commit.title == _MESSAGE:
            return ""
        return f"the {CARD} of {self.repo} was edited there"


def upload_of(folder: Path, repo: str) -> Upload:
    """Collect the files of a folder to upload: all but hidden ones. Needs no network.

    Raises:
        CheckpointError: it is not a folder that lpjax writes, or a file is a link that leads out of it.
    """
    put_back(folder)
    read_object(folder / CONFIG)
    if not holds_weights(folder):
        raise CheckpointError(f"{folder} holds neither weights nor a program; expected a folder that lpjax wrote")
    files: dict[str, Path | bytes] = dict(_visible(folder))
    if CARD in files and wrote_card(folder / CARD):
        # In quotation marks, the placeholder is an argument in example code.
        files[CARD] = (folder / CARD).read_bytes().replace(f'"{REPO}"'.encode(), f'"{repo}"'.encode())
    return Upload(repo, files)


def check_repo(repo: str) -> None:
    """Refuse a name that is not OWNER/NAME.

    Raises:
        ValueError: it is not; names it.
    """
    from huggingface_hub.utils import validate_repo_id

    problem = "" if "/" in repo and HUB_ID.fullmatch(repo) else "it has no owner, or other characters"
    try:
        validate_repo_id(repo)
    except ValueError as error:
        problem = first_line(error)
    if problem:
        raise ValueError(f"{repo!r} is not the name of a repository ({problem}); expected OWNER/NAME, such as me/small")


def _visible(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(files_inside(folder, folder)):
        name = path.relative_to(folder)
        if not any(part.startswith(".") for part in name.parts):
            check_inside(path, folder)
            yield name.as_posix(), path
