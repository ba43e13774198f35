"""A bundle goes to the hub and comes back; every refusal is one line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mois.cli import main as mois_main
from mois.sharing.bundle import Bundle
from mois.sharing.hub import HEADER, pull_bundle, push_bundle
from tests.support.example_bundles import random_bundle
from tests.support.mock_hub import MockHub, mock_hub, sha_of

REPO = "clinic/ring-lesions"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_bundle(tmp_path_factory.mktemp("made") / "bundle")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[MockHub]:
    with mock_hub() as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        template = f"{server.address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
        monkeypatch.setenv("HF_TOKEN", server.token)
        yield server


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_bundle_comes_back_as_it_was_from_a_private_repository(hub: MockHub, bundle: Path, tmp_path: Path) -> None:
    made = push_bundle(bundle, REPO)
    there = hub.repositories[REPO]["main"]
    assert made == (f"{hub.address}/{REPO}", sha_of(there))
    assert hub.public == set()
    mine = contents(bundle)
    assert there == {**mine, "README.md": HEADER.encode() + mine["README.md"]}

    pulled = pull_bundle(REPO, tmp_path / "pulled")
    assert pulled == made
    assert contents(tmp_path / "pulled") == there
    assert Bundle.load(tmp_path / "pulled").identity == Bundle.load(bundle).identity


def test_a_branch_is_made_and_read_and_old_files_go(hub: MockHub, bundle: Path, tmp_path: Path) -> None:
    push_bundle(bundle, REPO)
    first = sha_of(hub.repositories[REPO]["main"])
    hub.repositories[REPO]["main"]["adapter/of_an_older_bundle.json"] = b"{}"
    push_bundle(bundle, REPO)
    assert sha_of(hub.repositories[REPO]["main"]) == first
    push_bundle(bundle, REPO, "trial")
    assert set(hub.repositories[REPO]) == {"main", "trial"}
    hub.repositories[REPO]["main"].clear()
    pull_bundle(REPO, tmp_path / "by_branch", "trial")
    pull_bundle(REPO, tmp_path / "by_commit", first)
    assert contents(tmp_path / "by_branch") == contents(tmp_path / "by_commit")


def test_the_commands_push_and_pull(
    hub: MockHub, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mois_main(["bundle", "push", str(bundle), REPO])
    assert f"mois bundle pull {REPO} --out DIR --revision " in capsys.readouterr().out
    mois_main(["bundle", "pull", REPO, "--out", str(tmp_path / "pulled")])
    assert capsys.readouterr().out.startswith(f"bundle: {tmp_path / 'pulled'}, from {hub.address}/{REPO}, commit ")


def test_a_public_repository_is_written_only_if_that_is_said(hub: MockHub, bundle: Path) -> None:
    push_bundle(bundle, REPO, private=False)
    assert hub.public == {REPO}
    with pytest.raises(ValueError, match="exists and is public; push with --private false"):
        push_bundle(bundle, REPO)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"bundle.json": None}, "holds no bundle: there is no bundle.json in it"),
        ({"propagation.safetensors": None}, r"repo=clinic/ring-lesions lacks propagation.safetensors"),
        ({"propagation.safetensors": b"other"}, "propagation.safetensors is damaged or was changed"),
        ({"bundle.json": b"{}"}, "bundle.json is of format None"),
        ({"adapter/more.json": b"{}"}, "holds adapter/more.json, which is not recorded"),
        (
            {"adapter/model.pkl": b"x"},
            "holds adapter/model.pkl; only .safetensors, .json, .md files of a bundle",
        ),
        ({"adapter/../../x.json": b"x"}, "holds adapter/../../x.json; only"),
    ],
)
def test_what_is_pulled_is_checked_before_it_is_written(
    hub: MockHub, bundle: Path, tmp_path: Path, change: dict[str, bytes | None], line: str
) -> None:
    push_bundle(bundle, REPO)
    files = hub.repositories[REPO]["main"]
    files |= {name: content for name, content in change.items() if content is not None}
    for name in [name for name, content in change.items() if content is None]:
        del files[name]
    with pytest.raises(ValueError, match=line) as refused:
        pull_bundle(REPO, tmp_path / "pulled")
    assert "\n" not in str(refused.value)
    assert "/tmp" not in str(refused.value).replace(str(tmp_path), "")
    assert not (tmp_path / "pulled").exists()


def test_a_bundle_with_other_files_is_not_pushed(hub: MockHub, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mois.sharing.hub.ENDINGS", (".json", ".md"))
    with pytest.raises(ValueError, match=r"holds propagation.safetensors; only .json, .md files"):
        push_bundle(bundle, REPO)
    assert hub.requests == []


def test_other_files_beside_the_bundle_stay_where_they_are(hub: MockHub, bundle: Path, tmp_path: Path) -> None:
    push_bundle(bundle, REPO)
    hub.repositories[REPO]["main"]["notes.pkl"] = b"not of the bundle"
    pull_bundle(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled" / "notes.pkl").exists()
    assert f"GET /{REPO}/resolve/main/notes.pkl" not in hub.requests


TROUBLES = {
    "offline": "HF_HUB_OFFLINE is set; unset it, or copy the folder of the bundle by hand.",
    "unreachable": "the hub cannot be reached (http://127.0.0.1:9: [Errno 111] Connection refused); check",
    "unauthorised": "the hub does not know you, or there is no such repository; check the name, and log in",
    "forbidden": "your token may not do this",
    "broken": "the hub answered 500; try again later.",
    "name": "is no name of a repository; write OWNER/NAME.",
    "revision": "there is no such revision; give a branch, a tag or the hash of a commit.",
    "missing": "there is no such repository, or you may not see it",
}
ONLY_PULL = ("revision", "missing")
"""A push makes the branch and the repository."""


@pytest.mark.parametrize(
    ("command", "trouble"),
    [(command, one) for command in ("push", "pull") for one in TROUBLES if command == "pull" or one not in ONLY_PULL],
)
def test_trouble_with_the_hub_is_one_line(
    hub: MockHub,
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    trouble: str,
) -> None:
    repository, more = REPO, []
    if trouble == "offline":
        monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    elif trouble == "unreachable":
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    elif trouble == "unauthorised":
        monkeypatch.setenv("HF_TOKEN", "hf_other")
    elif trouble in ("forbidden", "broken"):
        hub.status = 403 if trouble == "forbidden" else 500
    elif trouble == "name":
        repository = "a/b/c"
    elif trouble == "revision":
        push_bundle(bundle, REPO)
        more = ["--revision=none"]
    words = [str(bundle), repository] if command == "push" else [repository, f"--out={tmp_path / 'pulled'}", *more]
    with pytest.raises(SystemExit, match="2"):
        mois_main(["bundle", command, *words])
    said = capsys.readouterr().err
    assert said.startswith(f"error: repo={repository}")
    assert TROUBLES[trouble] in said
    assert said.count("\n") == 1
    assert hub.token not in said
