"""What compact exemplars cost in quality: Dice of sessions on phantoms with the bundled nano, as pretrained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datamodules.phantoms.lesion_types import draw_lesion_types
from datamodules.phantoms.phantom import make_phantom
from datamodules.pretraining import as_volume
from mois.backbones import SAM2
from mois.evaluation.true_lesions import TrueLesions
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import Propagation
from mois.metrics.overlap import Overlap
from mois.propagation import Attention, Similarity
from mois.session import InteractiveSession
from mois.sharing.bank import Exemplar, ExemplarBank
from mois.sharing.lesion_model import LesionModel
from tests.bench.measure import Measurement, Outcome

SCANS, LESIONS = 3, 200  # of two types: up to a hundred exemplars of each
FEW = 10  # exemplars of the attention, which takes no more than that at a bearable price
NO_END = 10_000  # exemplars, of which none are merged


def compact_exemplars(repeats: int) -> Outcome:
    """Dice of about a hundred exemplars merged against all, and of foreground against dense tokens (bundled nano)."""
    del repeats
    settings = InferenceSettings(precision="32")
    arms: dict[str, tuple[Propagation, InferenceSettings, int]] = {
        "similarity_all": (Similarity(weights="bundled"), replace(settings, most_exemplars=NO_END), NO_END),
        "similarity_merged": (Similarity(weights="bundled"), settings, NO_END),
        "attention_dense": (Attention(weights="bundled"), settings, FEW),
        "attention_foreground": (Attention(tokens="foreground", weights="bundled"), settings, FEW),
    }
    backbone = SAM2(weights="bundled").eval()
    models = {}
    for name, (propagation, how, _) in arms.items():
        propagation.build(backbone)
        models[name] = LesionModel.of(VolumeSegmenter(backbone, propagation.eval(), how))
    dice: dict[str, list[float]] = {name: [] for name in arms}
    for seed in range(SCANS):
        rng = np.random.default_rng(seed)
        volume = as_volume(make_phantom(rng, draw_lesion_types(rng, 2), lesions=(LESIONS, LESIONS)), f"phantom {seed}")
        for name, (_, _, most) in arms.items():
            dice[name] += _dice_by_class(InteractiveSession(models[name], volume), most)
    every, merged, dense, foreground = (np.array(dice[name]) for name in arms)
    details = {f"{name}_dice": float(np.mean(found)) for name, found in dice.items()}
    details["merged_apart_at_most"] = float(np.abs(every - merged).max())
    details["foreground_apart_at_most"] = float(np.abs(dense - foreground).max())
    figures = {
        "dice_merged_vs_all": float(merged.mean() / every.mean()),
        "dice_foreground_vs_dense": float(foreground.mean() / dense.mean()),
    }
    return Outcome(figures, details)


def _dice_by_class(session: InteractiveSession, most: int) -> list[float]:
    """Return the Dice of each class, when a session is brought its true outlines, at most so many, as a bank."""
    bench, found = session._bench, []
    grid, pixel_mm = bench.grid, bench.segmenter.settings.pixel_mm
    truth = TrueLesions.of(session.volume, grid)
    for target_class in sorted(set(truth.classes.values())):
        ids = truth.volumes_of_class(target_class)
        bank = ExemplarBank(bench.model.identity, pixel_mm)
        for lesion in sorted(ids)[:most]:
            index = truth.largest_slice(lesion)
            shown = truth.outline(lesion, index, grid, pixel_mm)
            described = bench.segmenter.exemplars(bench.encoded, [(index, shown)])
            if bool(described.valid.any()):
                tokens = {name: token[0, 0] for name, token in described.tokens.items()}
                facts = (str(lesion), "true outlines", "phantom", (0.0, 0.0, 0.0), 0.0, 0.0, 0.0)
                bank.add(Exemplar(*facts, tokens=tokens))
        session.use_bank(bank)
        session.propagate()
        lesions = grid.to_stack(session.label_map()).numpy()
        found.append(Overlap.of(lesions, truth.only(ids)).dice())
        session.undo()
        session.undo()
    return found


MEASUREMENTS: list[Measurement] = [compact_exemplars]
