"""`mois evaluate` as a user gives it: a bundle or another system's maps, on scans in the real file format."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mois.cli import main
from mois.evaluation.reader import Reader
from tests.support.datasets import save_nifti, scan_with_lesions
from tests.support.example_bundles import random_bundle
from tests.support.paths import ROOT

Make = Callable[..., Path]


def failing(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1].removeprefix("error: ")


def test_a_bundle_is_evaluated_and_reported(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = make_dataset(subjects=2, held_out=1), tmp_path / "out"
    provenance = {"config": {"data": {"init_args": {"root": str(root), "train_subjects": ["p0"], "channel": 0}}}}
    model = random_bundle(tmp_path / "bundle", provenance)
    command = [
        "evaluate",
        f"--bundle={model}",
        f"--data={root}",
        f"--out={out}",
        "--reader.prompted=2",
        "--protocol.counts=[0,1]",
    ]
    main([*command, "--protocol.rules=paper", "--reader.strategy=spread", "--reader.noise_mm=1", "--device=cpu"])
    assert "report.html" in capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert [one["subject"] for one in metrics["subjects"]] == ["p2"]
    reader = {"strategy": "spread", "seed": 0, "noise_mm": 1.0, "miss": 0.0, "slices": "largest"}
    assert metrics["protocol"]["reader"] == reader
    assert metrics["protocol"]["rules"] == "paper"
    assert [point["count"] for point in metrics["curve"]["points"]] == [0, 1]
    assert metrics["provenance"]["trained_on"] == []
    assert metrics["provenance"]["bundle"] == str(model)
    for kind in ("predictions/p2_class1.nii.gz", "overlays/p2_class2.png", "subjects.csv", "curve.csv"):
        assert (out / kind).is_file()
    assert (out / "candidates.csv").read_text(encoding="utf-8").splitlines()[0].endswith(",confidence")
    assert "By the paper" in (out / "report.html").read_text(encoding="utf-8")

    main([*command[:3], f"--out={tmp_path / 'all'}", "--subjects=[p0,p2]", "--protocol.counts=[]", "--device=cpu"])
    metrics = json.loads((tmp_path / "all" / "metrics.json").read_text(encoding="utf-8"))
    assert [one["subject"] for one in metrics["subjects"]] == ["p0", "p2"]
    assert metrics["provenance"]["trained_on"] == ["p0"]
    assert "The model was trained on 1 of these scans: p0." in (tmp_path / "all" / "report.html").read_text(
        encoding="utf-8"
    )

    line = failing(capsys, *command, "--device=cpu")
    assert "holds results of another evaluation, which differs in reader" in line
    line = failing(capsys, *command[:3], f"--out={tmp_path / 'val'}", "--split=val", "--device=cpu")
    assert line.startswith(f"split=val: {root} has no such scans")


def test_maps_of_another_system_are_scored_alone_and_with_prompted_masks(make_dataset: Make, tmp_path: Path) -> None:
    root = make_dataset(subjects=1, held_out=1, instances=True)
    _, classes, ids = scan_with_lesions(1)
    maps, prompted = tmp_path / "maps", tmp_path / "prompted"
    save_nifti(maps / "p1.nii.gz", (classes == 1).astype("uint8"))  # finds the first class alone
    common = ["evaluate", f"--predictions={maps}", f"--data={root}", "--reader.prompted=1", "--protocol.counts=[1]"]
    main([*common, f"--out={tmp_path / 'alone'}"])
    alone = json.loads((tmp_path / "alone" / "metrics.json").read_text(encoding="utf-8"))
    summary = alone["summary"]
    assert summary["unprompted"]["dice"]["mean"] == pytest.approx(0.5)  # 1 for one class, 0 for the other
    assert summary["unprompted"]["fp_per_scan"]["mean"] == 0
    assert alone["provenance"]["predictions"] == str(maps)
    page = (tmp_path / "alone" / "report.html").read_text(encoding="utf-8")
    assert "Predictions of another system" in page
    assert "This system takes no exemplars" in page
    assert "one lesion class in each scan" not in page
    assert "exemplars are not used" not in page

    # The reader prompts one lesion of each class; that of class 2, which the maps lack, is given to them.
    volumes_ml = dict.fromkeys(np.unique(ids[classes == 2]).tolist(), 0.432)
    promptable, _ = Reader().hold_out(volumes_ml)
    (lesion,) = Reader().choose_lesions({one: volumes_ml[one] for one in promptable}, 1)
    save_nifti(prompted / "p1_class2.nii.gz", np.where(ids == lesion, ids, 0))
    main([*common, f"--prompted_masks={prompted}", f"--out={tmp_path / 'given'}"])
    given = json.loads((tmp_path / "given" / "metrics.json").read_text(encoding="utf-8"))["summary"]
    assert given["unprompted"]["dice"]["mean"] == pytest.approx(0.5)
    # One of six lesions of 18 voxels: 2 x 18 / (18 + 108) = 2 / 7.
    assert summary["scan_dice"]["mean"] == pytest.approx((1 + 0) / 2)
    assert given["scan_dice"]["mean"] == pytest.approx((1 + 2 / 7) / 2)


def test_numbers_of_maps_mean_what_they_say(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(subjects=1, held_out=1)
    _, classes, _ = scan_with_lesions(1)
    command = ["evaluate", f"--data={root}", "--reader.prompted=0", "--protocol.counts=[]"]
    path = save_nifti(tmp_path / "near" / "p1.nii.gz", classes * 0.9999999)
    main([*command, f"--predictions={path.parent}", f"--out={tmp_path / 'out'}"])
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["summary"]["scan_dice"]["mean"] == 1.0
    assert metrics["summary"]["unprompted"]["false_apart"]["mean"] == 0
    assert metrics["summary"]["scan"]["fragments"]["mean"] == 0
    assert "one lesion class in each scan" not in capsys.readouterr().out
    for name, given, message in (
        ("off", classes * 0.98, "label values must be whole numbers, got 1.96; threshold it"),
        ("strange", np.where(classes == 1, 7, classes), "holds label 7, dataset.json declares [1, 2]; give --kind"),
        ("negative", classes.astype(np.int16) - 1, "label values must lie between 0 and 2147483647, got -1 to 1"),
    ):
        path = save_nifti(tmp_path / name / "p1.nii.gz", given)
        line = failing(capsys, *command, f"--predictions={path.parent}", f"--out={tmp_path / name / 'out'}")
        assert line.startswith(f"{path}: {message}"), line
    target = failing(
        capsys, *command, f"--predictions={tmp_path / 'near'}", "--protocol.target_class=7", f"--out={tmp_path / 'x'}"
    )
    assert "target_class=7 is not declared" in target


def test_wrong_command_lines_end_in_one_line(
    make_dataset: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_dataset(subjects=1, held_out=1)
    base = ["evaluate", f"--data={root}", f"--out={tmp_path / 'out'}"]
    assert failing(capsys, *base) == "give one of --bundle (a model) and --predictions (another system's maps)."
    assert failing(capsys, *base, f"--predictions={tmp_path / 'gone'}").startswith(f"{tmp_path / 'gone'}: there is no")
    (tmp_path / "maps").mkdir()
    assert "no map of scan p1; write p1.nii.gz" in failing(capsys, *base, f"--predictions={tmp_path / 'maps'}")
    line = failing(capsys, *base, f"--predictions={tmp_path / 'maps'}", "--output.robustness=true")
    assert line == "--output.robustness needs a model to run on changed scans; give --bundle instead of --predictions."
    line = failing(capsys, "evaluate", "--data=gone", f"--out={tmp_path}", f"--predictions={tmp_path}")
    assert line == "gone/dataset.json: no such file; set --data to the folder of an nnU-Net raw dataset."
    line = failing(capsys, *base, f"--predictions={tmp_path / 'maps'}", "--subjects", "p9")
    assert line == "--subjects: no scan is called 'p9'; choose from p0, p1."
    line = failing(capsys, *base, f"--predictions={tmp_path / 'maps'}", "--channel=3")
    assert line == "--channel=3: scan p1 has no such image (file *_0003.*); it has 0."
    line = failing(capsys, *base, f"--predictions={tmp_path / 'maps'}", "--protocol.target_class=9")
    assert line == "--protocol.target_class=9 is not declared in dataset.json; choose one of 1 (bright), 2 (dark)."
    assert not (tmp_path / "out").exists()


@contextmanager
def apart(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """Start `python COMMAND`; nothing of it outlives the context."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    try:
        yield process
    finally:
        process.terminate()  # torchrun ends its own
        process.communicate()


@pytest.mark.ci
def test_a_bad_scan_of_one_process_ends_all_with_its_line(make_dataset: Make, tmp_path: Path) -> None:
    root = make_dataset(subjects=1, held_out=2)
    for number in (1, 2):
        save_nifti(tmp_path / "maps" / f"p{number}.nii.gz", scan_with_lesions(number)[1])
    bad = root / "imagesTs" / "p2_0000.nii.gz"  # the second: rank 1's
    bad.write_bytes(bad.read_bytes()[:-500])
    command = [
        "evaluate",
        f"--predictions={tmp_path / 'maps'}",
        f"--data={root}",
        "--reader.prompted=1",
        "--protocol.counts=[]",
    ]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "mois.cli"]
    with apart(*torchrun, *command, f"--out={tmp_path / 'out'}") as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    (line,) = [line for line in said.splitlines() if line.startswith(("error: ", "[rank"))]
    assert line == f"error: {bad}: cut off or damaged; copy it again from its source."
    assert "rank      : 1 (local_rank: 1)\n  exitcode  : 2" in said.partition("Root Cause")[2]  # as torchrun sees it


WAITING = """
import sys, time
from pathlib import Path
from mois.machine import processes
processes.LAUNCHER_S = 0.1
with processes.joined() as these:
    Path(sys.argv[1]).touch()
    if these.rank == 1:
        time.sleep(99)
    these.wait()
"""


@pytest.mark.slow
def test_a_process_whose_peer_was_killed_says_so_and_ends(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    with (
        apart("-c", WAITING, str(tmp_path / "0"), RANK="0", **place) as first,
        apart("-c", WAITING, str(tmp_path / "1"), RANK="1", **place) as second,
    ):
        while not (tmp_path / "1").exists() or not (tmp_path / "0").exists():
            time.sleep(0.05)
        second.send_signal(signal.SIGKILL)
        _, said = first.communicate(timeout=60)
    assert first.returncode == 1
    assert said == (
        "error: another process ended, or did not answer for 24 hours, which ends all of them; see what it said, "
        "and start again: what is finished is not done again\n"
    )
