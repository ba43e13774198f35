"""Bundles on the Hugging Face hub: a bundle becomes a repository, and a repository a bundle.

Only safetensors, JSON and the card travel. A bundle from the hub is checked like every bundle before it is written.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from mois.backbones.weights import why_unreachable
from mois.errors import one_line
from mois.files.atomic import write_text
from mois.files.text import read_text
from mois.sharing.bundle import copy_bundle
from mois.sharing.bundle_files import ADAPTER, CARD, PROPAGATION, refuse_foreign
from mois.sharing.bundle_record import DESCRIPTION, read_description

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ENDINGS = (".safetensors", ".json", ".md")
"""Endings of the files that travel. None of them is a pickle or code."""

FILES = (DESCRIPTION, CARD, PROPAGATION)
"""Files of a bundle beside those of its adapter."""

HEADER = """---
library_name: mois
pipeline_tag: image-segmentation
tags: [medical, lesion-segmentation, sam2]
---

"""
"""First lines of the card on the hub, by which the hub sorts repositories."""

LOG_IN = "log in (hf auth login) or set HF_TOKEN"


class Commit(NamedTuple):
    """A state of a repository.

    Attributes:
        address: Address of the repository on the hub.
        revision: Hash of the commit.
    """

    address: str
    revision: str


def push_bundle(folder: Path, repository: str, revision: str | None = None, *, private: bool = True) -> Commit:
    """Write a bundle to a repository of the hub. An older bundle there is replaced; the repository keeps its history.

    Args:
        folder: Folder of the bundle.
        repository: Its place, OWNER/NAME. It is made if it is missing.
        revision: Branch to write to. It is made if it is missing. None: the main branch.
        private: Whether a new repository is private. A public one is refused if it is True.

    Raises:
        ValueError: If the folder is no whole bundle or holds other files than safetensors and JSON, the hub cannot be
            reached, or it refuses.
    """
    record = read_description(folder)
    _refuse_other_files(record.files, f"bundle={folder}")
    with tempfile.TemporaryDirectory() as temporary, _hub(repository) as hub:
        copy = Path(temporary) / folder.resolve().name
        copy_bundle(folder, copy)
        card = copy / CARD
        write_text(card, HEADER + (read_text(card) if card.is_file() else ""))
        hub.create_repo(repository, private=private, exist_ok=True)
        about = hub.model_info(repository)
        if private and about.private is False:
            raise ValueError(
                f"repo={repository} exists and is public; push with --private false if all may see the bundle, or "
                "choose another name."
            )
        if revision is not None:
            hub.create_branch(repository, branch=revision, exist_ok=True)
        made = hub.upload_folder(
            repo_id=repository,
            folder_path=copy,
            revision=revision,
            commit_message=f"mois bundle {folder.resolve().name}",
            delete_patterns=[f"{ADAPTER}/*"],
        )
        return Commit(f"{hub.endpoint}/{repository}", str(made.oid))


def pull_bundle(repository: str, out: Path, revision: str | None = None) -> Commit:
    """Write the bundle of a repository into a folder, after the checks that loading a bundle makes.

    Args:
        repository: OWNER/NAME.
        out: Folder of the bundle. An older bundle there is replaced once the new one is whole.
        revision: Branch, tag or hash of a commit. None: the main branch.

    Raises:
        ValueError: If the hub cannot be reached or refuses, the repository holds no whole bundle or other files than
            safetensors and JSON in it, or `out` holds files but no bundle.
    """
    refuse_foreign(out)
    with tempfile.TemporaryDirectory() as temporary, _hub(repository) as hub:
        about = hub.model_info(repository, revision=revision)
        names = [file.rfilename for file in about.siblings or ()]
        of_bundle = [name for name in names if name in FILES or name.startswith(f"{ADAPTER}/")]
        if DESCRIPTION not in of_bundle:
            raise ValueError(f"repo={repository} holds no bundle: there is no {DESCRIPTION} in it; check its name.")
        _refuse_other_files(of_bundle, f"repo={repository}")
        for name in of_bundle:
            hub.hf_hub_download(repository, name, revision=about.sha, local_dir=temporary)
        try:
            copy_bundle(Path(temporary), out)
        except ValueError as error:
            reason = str(error).replace(f"bundle={temporary}", f"repo={repository}")
            raise ValueError(reason.replace(f"{temporary}/", f"repo={repository}: ")) from error
        return Commit(f"{hub.endpoint}/{repository}", str(about.sha))


def _refuse_other_files(names: Sequence[str] | dict[str, str], where: str) -> None:
    """Refuse files that may hold code, and names that lead out of the folder."""
    for name in names:
        path = PurePosixPath(name)
        if path.suffix not in ENDINGS or path.is_absolute() or ".." in path.parts or "\\" in name:
            raise ValueError(f"{where} holds {name}; only {', '.join(ENDINGS)} files of a bundle travel over the hub.")


@contextmanager
def _hub(repository: str) -> Iterator[HfApi]:
    """Give the client of the hub, and turn its errors into one line.

    Raises:
        ValueError: If the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi, constants, errors  # takes a second to import, and only these commands need it

    what = f"repo={repository}"
    hub = HfApi()
    if constants.is_offline_mode():
        raise ValueError(f"{what}: HF_HUB_OFFLINE is set; unset it, or copy the folder of the bundle by hand.")
    if (reason := why_unreachable(hub.endpoint)) is not None:
        cure = "check the network, or copy the folder of the bundle by hand"
        raise ValueError(f"{what}: the hub cannot be reached ({reason}); {cure}.")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it would tell of every try
    try:
        yield hub
    except errors.LocalTokenNotFoundError as error:
        raise ValueError(f"{what}: the hub asks who you are; {LOG_IN}.") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{what}: there is no such revision; give a branch, a tag or the hash of a commit.") from error
    except errors.HFValidationError as error:
        raise ValueError(f"{what} is no name of a repository; write OWNER/NAME.") from error
    except errors.HfHubHTTPError as error:
        raise ValueError(f"{what}: {_refusal(error.response.status_code)}.") from error
    except (errors.HTTPError, errors.LocalEntryNotFoundError) as error:  # type: ignore[attr-defined] # of its client
        reason = one_line(str(error.__cause__ or error)) or type(error).__name__
        raise ValueError(f"{what}: the connection to the hub broke ({reason}); try again.") from error


def _refusal(status: int) -> str:
    """Return why the hub refused, and what to do."""
    if status == 401:
        return f"the hub does not know you, or there is no such repository; check the name, and {LOG_IN}"
    if status == 403:
        return "your token may not do this; take a token with the right to write, or another name"
    if status == 404:
        return f"there is no such repository, or you may not see it; check the name, or {LOG_IN}"
    return f"the hub answered {status}; try again later"
