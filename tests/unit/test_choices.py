"""Words that are none of the choices are refused from Python, as the command line refuses them."""

import pytest

from mois.errors import check_choices
from mois.evaluation.reader import Reader
from mois.evaluation.settings import ProtocolSettings
from mois.inference.settings import InferenceSettings
from mois.propagation import Attention
from mois.tracking.settings import TrackingSettings


@pytest.mark.parametrize(
    ("kind", "key", "choices"),
    [
        (InferenceSettings, "inference.rejections", "exemplars or vetoes"),
        (InferenceSettings, "inference.clicks", "model, matched, bounded, followed or near"),
        (InferenceSettings, "inference.precision", "auto, 32 or bf16"),
        (InferenceSettings, "inference.slice_axis", "auto, left-right, anterior-posterior or superior-inferior"),
        (ProtocolSettings, "protocol.masks", "predicted or true"),
        (Reader, "reader.slices", "largest or any"),
        (TrackingSettings, "tracking.wandb", "auto, offline or disabled"),
        (TrackingSettings, "tracking.names", "plain, hashed or None"),
        (Attention, "propagation.keys", "memory or shared"),
        (Attention, "propagation.tokens", "dense or foreground"),
    ],
)
def test_a_misspelt_word_is_refused_with_all_choices(kind, key, choices):
    with pytest.raises(ValueError, match=f"^{key}='mispelt' is unknown; choose {choices}.$"):
        kind(**{key.partition(".")[2]: "mispelt"})


def test_all_choices_are_taken():
    check_choices(TrackingSettings(names=None), "tracking")
    check_choices(InferenceSettings(level="selective", window="auto"), "inference")
