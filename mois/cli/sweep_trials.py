"""The trials of `mois sweep`: optuna chooses settings and remembers the results in the folder of the sweep."""

from __future__ import annotations

import importlib.util
import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mois.cli.demo_steps import run_command
from mois.cli.messages import say
from mois.cli.sweep_file import Parameter, SweepFile
from mois.errors import one_line
from mois.files.atomic import write_text
from mois.files.csv_tables import csv_text
from mois.files.json_records import read_record
from mois.files.text import read_table
from mois.sharing.provenance import content_of

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class SweepTrials:
    """A sweep and what is known of its trials.

    Attributes:
        plan: The sweep.
        out: Folder of the trials: `trial0`, `trial1`, ..., `trials.csv` and `best.json`.
        study: Choices and results, stored in `study.db`.
    """

    plan: SweepFile
    out: Path
    study: optuna.Study

    @classmethod
    def open(cls, plan: SweepFile, out: Path, seed: int) -> SweepTrials:
        """Open the study of a folder, or begin one.

        Raises:
            ValueError: If optuna is missing, the folder holds another sweep, or what it remembers is damaged.
        """
        if importlib.util.find_spec("optuna") is None:
            raise ValueError("mois sweep needs optuna: pip install 'mois[sweep]'.")
        import optuna

        named = [word.partition("=")[2] if word.startswith("-") else word for word in plan.command]
        files = {word: sha256 for word in named if (sha256 := content_of(word)) is not None}
        mine = json.loads(json.dumps({**asdict(plan), "run_cap": None, "seed": seed, "files": files}))
        path = out / "sweep.json"
        theirs = read_record(path, dict[str, Any], "choose another folder") if path.is_file() else mine
        theirs = {"files": files, **theirs}  # earlier versions did not record the files
        if differ := [key for key in mine if theirs.get(key) != mine[key]]:
            changed = sorted(word for word in files if theirs["files"].get(word) != files[word])
            what = ", ".join([*changed, *(key for key in differ if key != "files" or not changed)])
            raise ValueError(f"out={out} holds another sweep (other {what}); choose another folder.")
        write_text(path, json.dumps(mine, indent=2) + "\n")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        from sqlalchemy.exc import DatabaseError  # optuna needs it

        try:
            study = optuna.create_study(
                storage=f"sqlite:///{(out / 'study.db').absolute()}",
                study_name=plan.name,
                direction="maximize" if plan.maximise else "minimize",
                load_if_exists=True,
            )
        except DatabaseError as error:
            reason = one_line(str(error.orig))
            raise ValueError(f"{out / 'study.db'} cannot be used ({reason}); choose another folder.") from error
        study.sampler = _sampler(plan, seed + len(study.trials))  # a sweep that goes on must not draw the same again
        return cls(plan, out, study)

    def run(self, count: int) -> None:
        """Make trials until `count` are done. A trial that was stopped goes on first.

        Raises:
            SystemExit: With the exit code of the first trial, if it failed: then the next ones would fail too.
        """
        from optuna.trial import Trial, TrialState

        for stopped in self.study.get_trials(states=(TrialState.RUNNING,)):
            self._finish(Trial(self.study, stopped._trial_id))
        while len(self._done()) < count:
            self._finish(self._ask())
        self._say()

    def _ask(self) -> optuna.Trial:
        """Begin a trial. In a grid, the study gets its settings, which it keeps if the sweep is stopped now."""
        begun = [one.params or one.system_attrs.get("fixed_params") for one in self.study.trials]
        if left := [settings for settings in self.plan.grid() if settings not in begun]:
            self.study.enqueue_trial(left[0])
        return self.study.ask()

    def _finish(self, trial: optuna.Trial) -> None:
        """Train a trial, or go on with it, and tell the study its result."""
        from optuna.trial import TrialState

        number, folder = trial.number, self.out / f"trial{trial.number}"
        settings = {name: _suggest(trial, name, one) for name, one in self.plan.parameters.items()}  # once, then stored
        value = self._value(folder) if (folder / "trained").is_file() else None
        if value is None:
            words = [*self.plan.words(settings), f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
            words += [f"--tracking.experiment={self.out.name}"]
            say(f"trial {number}: {', '.join(f'{name}={value}' for name, value in settings.items())}")
            failed = run_command(words)
            if failed < 0 or failed > 128 or (failed and not self._done()):  # stopped, or the first one
                raise SystemExit(failed if failed > 0 else 128 - failed)
            if not failed:
                write_text(folder / "trained", "")  # makes the folder, if the command wrote nothing there
            value = None if failed else self._value(folder)
        if value is None:
            self.study.tell(number, state=TrialState.FAIL)
            say(f"trial {number}: failed, or without {self.plan.metric}")
        else:
            self.study.tell(number, value)
            say(f"trial {number}: {self.plan.metric} {value:.4f}")
        self._write()

    def _value(self, folder: Path) -> float | None:
        """Return the best value of the figure over the validations of a trial."""
        path = folder / "metrics.csv"
        rows = read_table(path).rows if path.is_file() else []
        values = [float(row[self.plan.metric]) for row in rows if row.get(self.plan.metric)]
        finite = [value for value in values if math.isfinite(value)]
        return (max if self.plan.maximise else min)(finite) if finite else None

    def _done(self) -> list[optuna.trial.FrozenTrial]:
        from optuna.trial import TrialState

        return self.study.get_trials(states=(TrialState.COMPLETE, TrialState.FAIL))

    def _write(self) -> None:
        columns = ["trial", *self.plan.parameters, self.plan.metric]
        rows = [
            [one.number, *(one.params.get(name) for name in self.plan.parameters), one.value] for one in self._done()
        ]
        write_text(self.out / "trials.csv", csv_text(columns, rows))

    def _say(self) -> None:
        self._write()
        finished = [one for one in self._done() if one.value is not None]
        if not finished:
            say(f"{len(self._done())} trials, none with {self.plan.metric}")
            return
        best = self.study.best_trial
        content = {"trial": best.number, self.plan.metric: best.value, "settings": best.params}
        write_text(self.out / "best.json", json.dumps(content, indent=2) + "\n")
        chosen = " ".join(f"--{name}={shlex.quote(str(value))}" for name, value in best.params.items())
        say(f"{len(self._done())} trials; best is trial {best.number}, {self.plan.metric} {best.value:.4f}: {chosen}")


def _suggest(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    if parameter.values:
        return trial.suggest_categorical(name, parameter.values)
    if parameter.whole:
        return trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log)
    return trial.suggest_float(name, parameter.low, parameter.high, log=parameter.log)


def _sampler(plan: SweepFile, seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.TPESampler(seed=seed) if plan.method == "bayes" else optuna.samplers.RandomSampler(seed)
