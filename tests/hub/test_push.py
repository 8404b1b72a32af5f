"""`lpjax push`: what is uploaded, what is kept, and what is refused; the hub's client is a stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub import RepoFile
from huggingface_hub.errors import RepositoryNotFoundError

from lpjax.checkpoint.cards import MARKER
from tests.conftest import Command
from tests.helpers.checkpoints import files

REPO = "me/small"


class Hub:
    """Stands in for `HfApi`: repositories as files by name, and what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool | None] = {}
        self.titles: dict[str, dict[str, str]] = {}  # of the last commit that touched a file
        self.asked: list[str] = []
        self.fault: Exception | None = None
        self.folder = Path()

    def __call__(self) -> Hub:
        return self

    def model_info(self, repo: str) -> Any:
        self.asked.append("model_info")
        if self.fault:
            raise self.fault
        if repo not in self.repos:
            raise RepositoryNotFoundError("none", response=MagicMock())
        siblings = [SimpleNamespace(rfilename=name) for name in self.repos[repo]]
        return SimpleNamespace(sha="f00", siblings=siblings, private=bool(self.private.get(repo)))

    def create_repo(self, repo: str, *, private: bool | None) -> None:
        self.asked.append("create_repo")
        self.repos[repo], self.private[repo] = {}, private

    def hf_hub_download(self, repo: str, name: str, *, revision: str) -> str:
        path = self.folder / "downloaded"
        path.write_bytes(self.repos[repo][name])
        return str(path)

    def get_paths_info(self, repo: str, paths: str, *, expand: bool, revision: str) -> list[RepoFile]:
        assert expand
        commit = {
            "id": revision,
            "title": self.titles.get(repo, {}).get(paths, "By hand"),
            "date": "2026-01-02T00:00:00.000Z",
        }
        return [RepoFile(path=paths, size=1, oid="0", lastCommit=commit)]

    def create_commit(self, repo: str, operations: Any, *, commit_message: str, parent_commit: str | None) -> Any:
        self.asked.append(f"create_commit after {parent_commit}")
        for operation in operations:
            with operation.as_file() as file:
                content = file.read()
            if self.repos[repo].get(operation.path_in_repo) != content:
                self.titles.setdefault(repo, {})[operation.path_in_repo] = commit_message
            self.repos[repo][operation.path_in_repo] = content
        return SimpleNamespace(commit_url=f"hub:/{repo}/commit/1")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub()
    hub.folder = tmp_path
    monkeypatch.setattr(huggingface_hub, "HfApi", hub)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    return hub


@pytest.fixture
def online(command: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command with the hub in reach."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    return command


def test_a_dry_run_lists_the_files_and_asks_nothing(command: Command, small: Path, hub: Hub):
    (small / ".git").mkdir()
    (small / ".git" / "config").write_text("hidden")
    status, printed, _ = command("push", small, REPO, "--dry-run", "--json")
    assert status == 0
    result = json.loads(printed)
    sizes = {file["name"]: file["bytes"] for file in result["files"]}
    assert sizes.keys() == files(small).keys() - {".git/config"}
    assert sizes["lpjax.safetensors"] == (small / "lpjax.safetensors").stat().st_size
    assert result["bytes"] == sum(sizes.values())
    assert (result["repo"], result["dry_run"], hub.asked) == (REPO, True, [])
    status, printed, _ = command("push", small, REPO, "--dry-run")
    assert "lpjax.safetensors" in printed
    assert f"would be uploaded to {REPO}" in printed


def test_a_folder_goes_up_in_one_commit_with_its_card(online: Command, small: Path, hub: Hub):
    status, printed, err = online("push", small, REPO, "--private", "--json")
    assert status == 0, err
    assert json.loads(printed)["address"] == f"hub:/{REPO}/commit/1"
    assert hub.asked == ["model_info", "create_repo", "create_commit after None"]
    assert hub.private == {REPO: True}
    own = files(small)
    sent = hub.repos[REPO]
    assert {name: content for name, content in sent.items() if name != "README.md"} == {
        name: content for name, content in own.items() if name != "README.md"
    }
    assert f'load_checkpoint("{REPO}")' in sent["README.md"].decode()
    assert "OWNER/NAME" not in sent["README.md"].decode()
    # Again: its own card may be replaced.
    assert online("push", small, REPO)[0] == 0
    assert hub.asked[3:] == ["model_info", "create_commit after f00"]


def test_a_card_that_a_person_wrote_on_the_hub_is_kept(online: Command, small: Path, hub: Hub):
    hub.repos[REPO] = {"README.md": b"mine", "model.safetensors": b"dense"}
    status, printed, _ = online("push", small, REPO)
    assert status == 0
    assert "the README.md of me/small was not written by lpjax and is kept; --replace-card replaces it" in printed
    assert "also holds other weights, which stay: model.safetensors" in printed
    assert hub.repos[REPO]["README.md"] == b"mine"
    assert "lpjax.safetensors" in hub.repos[REPO]
    # So does a card that a person wrote here, unless told to replace it.
    (small / "README.md").write_text("another")
    status, printed, _ = online("push", small, REPO, "--json")
    result = json.loads(printed)
    assert result["notes"][0] == "the README.md of me/small was edited there and is kept; --replace-card replaces it"
    assert "README.md" not in {file["name"] for file in result["files"]}
    assert hub.repos[REPO]["README.md"] == b"mine"
    status, printed, _ = online("push", small, REPO, "--replace-card")
    assert (status, "is kept" in printed, hub.repos[REPO]["README.md"]) == (0, False, b"another")


def test_corrections_of_ones_own_card_go_up(online: Command, small: Path, hub: Hub):
    assert online("push", small, REPO)[0] == 0
    for text in ("# Mine\n", "# Mine, corrected\n", "# Mine, corrected\n"):  # the last changes nothing
        (small / "README.md").write_text(text)
        status, printed, err = online("push", small, REPO)
        assert (status, "kept" in printed, err) == (0, False, "")
        assert hub.repos[REPO]["README.md"] == text.encode()
    # Someone corrects it on the hub.
    hub.repos[REPO]["README.md"], hub.titles[REPO]["README.md"] = b"# Ours\n", "Update README.md"
    (small / "README.md").write_text("# Mine, corrected again\n")
    assert "is kept; --replace-card" in online("push", small, REPO)[1]
    assert hub.repos[REPO]["README.md"] == b"# Ours\n"
    # The same text here and there: nothing to keep, nothing to say.
    (small / "README.md").write_text("# Ours\n")
    assert "kept" not in online("push", small, REPO)[1]


def test_a_card_of_lpjax_does_not_replace_what_a_person_pushed(online: Command, small: Path, hub: Hub):
    generated = (small / "README.md").read_bytes()
    (small / "README.md").write_text("# Mine\n")
    assert online("push", small, REPO)[0] == 0
    (small / "README.md").write_bytes(generated)
    assert "was not written by lpjax and is kept" in online("push", small, REPO)[1]
    assert hub.repos[REPO]["README.md"] == b"# Mine\n"


def test_a_card_of_lpjax_is_renewed(online: Command, small: Path, hub: Hub):
    assert online("push", small, REPO)[0] == 0
    card = small / "README.md"
    card.write_text(card.read_text().replace("## Load", "## How to load"))
    assert "kept" not in online("push", small, REPO)[1]
    assert b"## How to load" in hub.repos[REPO]["README.md"]


def test_a_card_that_a_person_wrote_here_goes_up_as_it_is(online: Command, small: Path, hub: Hub):
    (small / "README.md").write_text('load("OWNER/NAME")')
    assert online("push", small, REPO)[0] == 0
    assert hub.repos[REPO]["README.md"] == b'load("OWNER/NAME")'
    assert MARKER not in hub.repos[REPO]["README.md"].decode()


@pytest.mark.parametrize("repo", ["small", "me/", "/small", "a/b/c", "me/sm all", "me/--x", "../x", "me/x.git", "me/é"])
def test_a_bad_name_is_refused(command: Command, small: Path, hub: Hub, repo: str):
    status, printed, err = command("push", small, repo, "--dry-run")
    assert (status, printed, hub.asked) == (2, "", [])
    assert "expected OWNER/NAME" in err


def test_what_is_no_checkpoint_is_refused(command: Command, folder: Path, tmp_path: Path, hub: Hub):
    status, _, err = command("push", tmp_path / "nowhere", REPO, "--dry-run")
    assert (status, "there is no folder" in err) == (2, True)
    (tmp_path / "empty").mkdir()
    status, _, err = command("push", tmp_path / "empty", REPO)
    assert (status, "is not a checkpoint" in err) == (1, True)
    (tmp_path / "empty" / "config.json").write_text("{}")
    status, _, err = command("push", tmp_path / "empty", REPO)
    assert (status, "neither weights nor a program" in err) == (1, True)
    (folder / "link.txt").symlink_to("/etc/hostname")
    status, _, err = command("push", folder, REPO, "--dry-run")
    assert (status, "leads out of its checkpoint" in err) == (1, True)
    assert hub.asked == []


def test_without_the_hub_nothing_is_uploaded(
    command: Command, online: Command, small: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, printed, err = command("push", small, REPO)
    assert (status, printed) == (1, "")
    assert "HF_HUB_OFFLINE is set" in err
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    status, _, err = online("push", small, REPO)
    assert (status, "hf auth login" in err) == (1, True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "a token")
    hub.fault = RuntimeError("the cable\nis cut")
    status, _, err = online("push", small, REPO)
    assert (status, "me/small was not uploaded: the cable" in err) == (1, True)
    assert hub.repos == {}


def test_private_weights_do_not_go_to_a_public_repository(online: Command, small: Path, hub: Hub):
    hub.repos[REPO] = {}
    status, _, err = online("push", small, REPO, "--private")
    assert (status, "is public; choose another name, or omit --private" in err) == (1, True)
    assert hub.repos[REPO] == {}
