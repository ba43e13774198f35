"""`mois segment`."""

from __future__ import annotations

import json
from pathlib import Path

from mois.cli.say import say


def segment(
    image: Path,
    bundle: Path,
    prompts: Path,
    out: Path,
    bank: Path | None = None,
    subject: str | None = None,
    patient: str | None = None,
    device: str = "cpu",
    trust: list[str] | None = None,
    backbone_weights: Path | None = None,
) -> None:
    """Find all lesions of a scan that are like those prompted.

    A run that was killed goes on where it was when it is started again with the same prompts.

    Args:
        image: NIfTI, NRRD or MHA file, or a folder that holds one DICOM series.
        bundle: The model: folder `bundle` of a training.
        prompts: JSON file: {"prompts": [{"click": [x, y, z], "lesion": "a"}, {"click": [x, y, z], "lesion": "a",
            "positive": false}, {"box": [[x, y, z], [x, y, z]]}, {"mask": "a.nii.gz"}, {"propagate": true}]}, in LPS mm;
            `lesion` is a name of yours and may be left out. Without any "propagate", there is one at the end.
        out: Folder for lesions.nii.gz, confidence.nii.gz, lesions.csv, bank.safetensors and the journal.
        bank: Exemplars of another scan, from its bank.safetensors.
        subject: Name of the scan; that of the file by default.
        patient: Whom it was taken of; the subject by default.
        device: Where to compute, such as cpu or cuda.
        trust: Modules of others whose classes the bundle may name, such as my_module.
        backbone_weights: Where the backbone's weights are, if not where they were at training.

    Raises:
        ValueError: If a file cannot be used, or the folder holds a session with other prompts.
    """
    from mois.bundle import Bundle
    from mois.io import read_volume
    from mois.journal import NAME
    from mois.session import InteractiveSession
    from mois.session.script import play, read_script

    script = read_script(prompts)
    name = subject or image.name.split(".")[0]
    volume = read_volume(image, None, subject=name, patient=patient or name, classes={})
    model = Bundle.load(bundle, device, trust or (), backbone_weights)
    known = {"calibration": model.calibration, "identity": model.identity}
    if (out / NAME).is_file():
        session = InteractiveSession.load(out, model.segmenter(), volume, **known)  # type: ignore[arg-type]
        say(f"going on after {len(session.actions)} actions in {out}")
    else:
        session = InteractiveSession(model.segmenter(), volume, out, **known)  # type: ignore[arg-type]
    play(session, script, bank)
    session.save()
    rows = session.lesions()
    found = sum(row.origin == "found" for row in rows)
    say(f"{len(rows)} lesions ({len(rows) - found} prompted, {found} found), {sum(r.volume_ml for r in rows):.1f} ml")
    for line in session.warnings():
        say(line)
    for each in session.suggest(1):
        click = json.dumps({"click": [round(value, 1) for value in each.point_lps_mm]})
        lesion = "" if each.lesion is None else f" (lesion {each.lesion})"
        say(f"suggestion: {click}{lesion}: {each.reason}")
    say(f"results in {out}")
    session.close()
