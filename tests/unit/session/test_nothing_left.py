"""Prompts that leave no voxel of a lesion are refused, and the refusal says why."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mois.inference.encoded_volume import UNCOVERED_LOGIT
from mois.records import Volume
from mois.session import InteractiveSession
from mois.session.masks import BoxMask
from mois.session.prompts.prompting import PromptSegmenter, SegmentedLesion
from tests.support.session_fakes import lps


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
