"""Prompts that leave no voxel of a lesion are refused, and the refusal says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mois.inference.encoded_volume import UNCOVERED_LOGIT
from mois.records import Volume
from mois.session import InteractiveSession
from mois.session.masks import BoxMask
from mois.session.models.typed_workbench import TypedWorkbench
from mois.session.prompts.prompting import PromptSegmenter, SegmentedLesion
from tests.support.session_fakes import lps, make_model


def shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the model see no lesion under any prompt."""
    assert UNCOVERED_LOGIT < 0
    nothing = SegmentedLesion(BoxMask.of(np.zeros((1, 1, 1), dtype=bool)), {})
    monkeypatch.setattr(PromptSegmenter, "segment", lambda self, prompts: nothing)


def test_a_negative_click_on_the_only_voxel_of_a_lesion_is_refused(
    scan: Volume, session: InteractiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.click(lps(scan, 2, 20, 20))
    shows_nothing(monkeypatch)
    before = session.label_map()
    message = "lesion 1: nothing of it would be left; reject or remove it, or undo its prompts."
    with pytest.raises(ValueError, match=message):
        session.click(lps(scan, 2, 20, 20), 1, positive=False)
    assert (session.label_map() == before).all()
    assert len(session.actions) == 1


def mask_of_a_block(scan: Volume, session: InteractiveSession) -> torch.Tensor:
    """Give a block of 8 x 8 voxels on slice 2 as lesion 1. It is tracked to other slices from there."""
    given = torch.zeros_like(scan.lesions)
    given[16:24, 16:24, 2] = 1
    assert session.mask(given) == 1
    assert int((session.label_map()[:, :, 2] == 1).sum()) == 64
    return given


@pytest.mark.parametrize("kind", ["box", "lasso", "mask"])
def test_a_negative_drawing_over_all_of_a_lesion_is_refused(
    kind: str, scan: Volume, session: InteractiveSession
) -> None:
    given = mask_of_a_block(scan, session)
    before = session.label_map()
    first, last = lps(scan, 2, 15, 15), lps(scan, 2, 24, 24)
    outline = [first, lps(scan, 2, 15, 24), last, lps(scan, 2, 24, 15)]
    draw: dict[str, Callable[[], int]] = {
        "box": lambda: session.box(first, last, 1, positive=False),
        "lasso": lambda: session.lasso(outline, positive=False),
        "mask": lambda: session.mask(given, 1, positive=False),
    }
    message = "^lesion 1: nothing of it would be left; reject or remove it, or undo its prompts.$"
    with pytest.raises(ValueError, match=message):
        draw[kind]()
    assert (session.label_map() == before).all()
    assert len(session.actions) == 1
    assert session.box(first, lps(scan, 2, 24, 20), 1, positive=False) == 1  # rows 15 to 24, columns 15 to 20 go
    assert int((session.label_map()[:, :, 2] == 1).sum()) == 8 * 3


def test_a_journal_of_before_that_took_all_of_a_lesion_away_replays_loads_and_goes_on(
    scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = InteractiveSession(make_model(), scan, tmp_path / "session")
    given = mask_of_a_block(scan, session)
    with monkeypatch.context() as before:
        before.setattr(TypedWorkbench, "apply_new", TypedWorkbench.apply)
        session.mask(given, 1, positive=False)
    assert not session.label_map().any()
    session.click(lps(scan, 2, 20, 20), 1)  # the reader drew it again
    session.close()
    replayed = InteractiveSession.replay(tmp_path / "session", make_model(), scan)
    loaded = InteractiveSession.load(tmp_path / "session", make_model(), scan)
    for other in (replayed, loaded):
        assert (other.label_map() == session.label_map()).all()
        assert int((other.label_map() == 1).sum())
        assert other.undo()
        assert not other.label_map().any()
    loaded.close()


@pytest.mark.parametrize(
    ("draw", "kind"),
    [
        (lambda session, at: session.box(at(2, 16, 16), at(2, 23, 23)), "box"),
        (lambda session, at: session.lasso([at(2, 16, 16), at(2, 16, 23), at(2, 23, 23)]), "lasso"),
    ],
)
def test_a_drawing_under_which_the_model_sees_nothing_is_told_so(
    draw: Callable[..., int], kind: str, scan: Volume, session: InteractiveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    shows_nothing(monkeypatch)
    message = f"the model sees no lesion under this {kind}; click in the lesion, or give its mask."
    with pytest.raises(ValueError, match=message):
        draw(session, lambda *place: lps(scan, *place))


def test_a_drawing_on_voxels_of_other_lesions_is_told_so(scan: Volume, session: InteractiveSession) -> None:
    session.click(lps(scan, 2, 20, 20))
    mask = session.label_map() == 1
    with pytest.raises(ValueError, match="all its voxels would belong to locked or prompted lesions"):
        session.mask(mask.numpy())
