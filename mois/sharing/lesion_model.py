"""A model as a session takes it: segmenter, calibration and identity in one record."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from mois.inference.segmenter import VolumeSegmenter
from mois.records import Volume
from mois.sharing.bank import ExemplarBank
from mois.sharing.calibration import Calibration
from mois.sharing.identity import ModelIdentity


@dataclass(frozen=True)
class LesionModel:
    """A model that finds lesions in whole volumes. `Bundle.model` returns it; `LesionModel.of` makes it by hand.

    Attributes:
        segmenter: Applies the model to a volume. Backbone and propagation are in eval mode.
        calibration: Gives the confidence of found lesions. None: the confidence is the highest probability of a lesion.
        identity: Identity of the model. Sessions and exemplar banks belong to one identity.
        follows_sessions: Whether it goes on with a session by the settings that the session was made with. The shipped
            model does: its settings change from version to version.
    """

    segmenter: VolumeSegmenter
    calibration: Calibration | None
    identity: ModelIdentity
    follows_sessions: bool = False

    @classmethod
    def of(
        cls, segmenter: VolumeSegmenter, calibration: Calibration | None = None, *, follows_sessions: bool = False
    ) -> LesionModel:
        """Return the model of a segmenter. Its identity is computed from its tensors as they are now."""
        identity = ModelIdentity.of(segmenter.backbone, segmenter.propagation)
        return cls(segmenter, calibration, identity, follows_sessions)

    def read_bank(self, path: Path, volume: Volume) -> ExemplarBank:
        """Read a bank of exemplars that this model can use on a scan.

        Raises:
            ValueError: If the file is no bank or is damaged; or if the bank is of another model, pixel size or rule of
                normalisation.
        """
        settings, rule = self.segmenter.settings, self.segmenter.normalisation(volume)
        return ExemplarBank.load(path, self.identity, settings.pixel_mm, rule, settings.channels)


def one_model(
    model: LesionModel | VolumeSegmenter, calibration: Calibration | None, identity: ModelIdentity | None
) -> LesionModel:
    """Return the model that a caller gave, in the current or in the old form.

    The old form is a segmenter, with `calibration` and `identity` as keywords. It works for one more version.

    Raises:
        TypeError: If a `LesionModel` is given together with an argument of the old form.
    """
    if isinstance(model, LesionModel):
        if calibration is not None or identity is not None:
            raise TypeError("calibration and identity are fields of the LesionModel; leave them out here.")
        return model
    warnings.warn(
        "InteractiveSession takes one model now: give bundle.model(), or LesionModel.of(segmenter), instead of a "
        "segmenter with calibration= and identity=",
        DeprecationWarning,
        stacklevel=3,
    )
    identity = identity if identity is not None else ModelIdentity.of(model.backbone, model.propagation)
    return LesionModel(model, calibration, identity)
