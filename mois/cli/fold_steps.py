"""The steps of `mois folds`: a training and a test for each fold, then the figures of all scans together."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from datamodules.splits import Fold, SplitSettings, folds_of
from mois.cli.demo_steps import run_command
from mois.cli.messages import say
from mois.evaluation.figures import SubjectReport
from mois.evaluation.result_files import write_result_files
from mois.evaluation.settings import ProtocolSettings
from mois.files.atomic import write_text
from mois.files.json_records import as_record, read_json, read_record
from mois.report.evaluation_page import write_report
from mois.scans.datasets import read_dataset
from mois.sharing.provenance import plain_settings

REPORTS = "reports.json"


@dataclass(frozen=True)
class FoldRuns:
    """The runs of all folds.

    Attributes:
        out: Their folder: `fold0`, `fold1`, ..., and `test` for all scans together.
        config: All settings of the training.
        folds: Names of the scans of each fold.
        checkpoint: Which weights are tested: last or best.
        seed: Seed of the training.
    """

    out: Path
    config: dict[str, Any]
    folds: tuple[Fold, ...]
    checkpoint: str
    seed: int

    @classmethod
    def plan(cls, training: Path, out: Path, settings: Sequence[str], checkpoint: str) -> FoldRuns:
        """Read the config of a training, and the folds of its dataset.

        Raises:
            ValueError: If its data are of another datamodule, name the scans that train, or cannot be parted into
                folds.
        """
        plain = resolved_config(["--config", str(training), *settings])
        data = plain["data"]
        if data["class_path"] not in ("datamodules.NiftiDataModule", "datamodules.nifti.NiftiDataModule"):
            raise ValueError(f"data={data['class_path']} has no folds; mois folds takes datamodules.NiftiDataModule.")
        arguments = data["init_args"]
        given = arguments.get("split") or {}
        key = "data.init_args.split"
        if given.get("train_subjects") is not None:
            raise ValueError(
                f"{key}.train_subjects={given['train_subjects']}: mois folds says who trains; set it to null, and name "
                f"scans that no fold may take in {key}.test_subjects."
            )
        split = SplitSettings(file=given.get("file"), test_subjects=given.get("test_subjects"))
        root = Path(arguments["root"])
        seed = int(plain["seed_everything"])  # the datamodule has the same
        return cls(out, plain, tuple(folds_of(read_dataset(root), split, root, seed)), checkpoint, seed)

    def claim(self) -> None:
        """Write what the folds are into their folder.

        Raises:
            ValueError: If the folder holds folds of another config, other options or other scans.
        """
        path = self.out / "folds.json"
        mine = {
            "config": plain_settings(self.config),
            "folds": [fold._asdict() for fold in self.folds],
            "checkpoint": self.checkpoint,
        }
        if path.is_file():
            theirs = read_record(path, dict[str, Any], "choose another folder")
            if different := [name for name, value in mine.items() if theirs.get(name) != value]:
                raise ValueError(
                    f"out={self.out} holds other folds: {', '.join(different)} differ; choose another one."
                )
        write_text(path, json.dumps(mine, indent=2) + "\n")

    def checked(self, only: Sequence[int] | None) -> Sequence[int]:
        """Return the folds to train, once all of them are known to be there; None takes every fold.

        Raises:
            ValueError: If there is no such fold.
        """
        for number in only or ():
            if not 0 <= number < len(self.folds):
                last = len(self.folds) - 1
                raise ValueError(f"only={number}: there are {len(self.folds)} folds; choose 0 to {last}.")
        return range(len(self.folds)) if only is None else only

    def run(self, number: int) -> None:
        """Train and test a fold. What is done already is skipped; a training that was stopped goes on.

        Raises:
            SystemExit: With the exit code of a command that failed; the command has written why.
        """
        folder, fold = self.out / f"fold{number}", self.folds[number]
        if (folder / "test" / REPORTS).is_file():
            say(f"fold {number}: done already, {folder}")
            return
        alone = {"fold": None, "train_subjects": None, "val_subjects": None, "val_slab": 0.0}
        if not (folder / "trained").is_file():
            self._do("fit", number, {**alone, "fold": number}, "last")
            (folder / "trained").touch()
        scans = {**alone, "train_subjects": fold.train, "test_subjects": fold.val}
        self._do("test", number, scans, str(folder / "checkpoints" / f"{self.checkpoint}.ckpt"))

    def _do(self, command: str, number: int, scans: Mapping[str, Any], weights: str) -> None:
        """Run a command of a training with other scans, from a config that holds all of its settings."""
        folder, name = self.out / f"fold{number}", self.out.name
        config = copy.deepcopy(self.config)
        config["data"]["init_args"]["split"] = {**(config["data"]["init_args"].get("split") or {}), **scans}
        config["trainer"]["default_root_dir"] = str(folder)
        config["tracking"] |= {"experiment": name, "name": f"{name} fold {number}"}
        write_text(folder / f"fold_{command}.yaml", yaml.safe_dump(config, sort_keys=False))
        words = [command, "--config", str(folder / f"fold_{command}.yaml"), "--ckpt_path", weights]
        say(f"mois {' '.join(words)}")
        if failed := run_command([sys.executable, "-m", "mois", *words]):
            raise SystemExit(failed)

    def join(self) -> dict[str, Any] | None:
        """Write the figures of all scans into `test`, as a test does; None while a fold is missing."""
        folders = [self.out / f"fold{number}" / "test" for number in range(len(self.folds))]
        if missing := [folder.parent.name for folder in folders if not (folder / REPORTS).is_file()]:
            say(f"still to do: {', '.join(missing)}; give the command again")
            return None
        reports = [report for folder in folders for report in read_reports(folder / REPORTS)]
        first = read_record(folders[0] / "metrics.json", dict[str, Any])
        protocol = as_record(first["protocol"], ProtocolSettings, str(folders[0]), "test again", complete=False)
        provenance = {
            **{key: first["provenance"].get(key) for key in ("code", "packages", "backbone", "config", "seed")},
            "folds": [_of_fold(folder) for folder in folders],
            "checkpoint": self.checkpoint,
        }
        reports.sort(key=lambda report: report.subject)
        metrics = write_result_files(self.out / "test", reports, provenance, protocol=protocol, seed=self.seed)
        write_report(self.out / "test", f"{self.out.name}: {len(folders)} folds")
        return metrics


def resolved_config(words: Sequence[str]) -> dict[str, Any]:
    """Return all settings of a training, as its command line reads them."""
    import io
    from contextlib import redirect_stdout, suppress

    from mois.cli.shipped_configs import with_shipped_configs
    from mois.cli.train import MoisCLI

    text = io.StringIO()
    with redirect_stdout(text), suppress(SystemExit):
        MoisCLI(["fit", *with_shipped_configs(words), "--print_config"])
    plain: dict[str, Any] = yaml.safe_load(text.getvalue())
    return plain


def read_reports(path: Path) -> list[SubjectReport]:
    """Return the reports on scans that a test wrote."""
    return [SubjectReport.from_json(one, str(path)) for one in read_json(path, "test again")]


def _of_fold(folder: Path) -> dict[str, Any]:
    provenance = read_record(folder / "metrics.json", dict[str, Any])["provenance"]
    return {"fold": folder.parent.name, "data": provenance.get("data"), "made_worse": provenance.get("made_worse")}
