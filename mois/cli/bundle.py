"""`mois bundle push | pull`."""

from __future__ import annotations

from pathlib import Path

from mois.cli.messages import say


def push(bundle: Path, repo: str, revision: str | None = None, private: bool = True) -> None:
    """Write a bundle to a repository of the Hugging Face hub.

    Log in first (hf auth login), or set HF_TOKEN. Only safetensors, JSON and the card travel.

    Args:
        bundle: Folder of the bundle; the first word after `mois bundle push`.
        repo: The repository, OWNER/NAME; the second word. It is made if it is missing.
        revision: Branch to write to; by default the main branch.
        private: Whether a new repository is private. With true, a public repository is refused.

    Raises:
        ValueError: If the folder is no whole bundle, or the hub cannot be reached or refuses.
    """
    from mois.sharing.hub import push_bundle

    made = push_bundle(bundle, repo, revision, private=private)
    say(f"{made.address}: commit {made.revision}\nmois bundle pull {repo} --out DIR --revision {made.revision[:12]}")


def pull(repo: str, out: Path, revision: str | None = None) -> None:
    """Write the bundle of a repository of the Hugging Face hub into a folder.

    Every file is checked as when a bundle is loaded.

    Args:
        repo: The repository, OWNER/NAME; the word after `mois bundle pull`.
        out: Folder of the bundle. An older bundle there is replaced.
        revision: Branch, tag or hash of a commit; by default the main branch.

    Raises:
        ValueError: If the repository holds no whole bundle, or the hub cannot be reached or refuses.
    """
    from mois.sharing.hub import pull_bundle

    made = pull_bundle(repo, out, revision)
    say(f"bundle: {out}, from {made.address}, commit {made.revision}; {out / 'README.md'} says what it is")
