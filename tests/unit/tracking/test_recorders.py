"""W&B, TensorBoard and MLflow get the same figures, settings, pictures, masks, tables and artifacts."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger

from mois.tracking.loggers import CsvLogger, hashes_names, make_loggers
from mois.tracking.names import Names
from mois.tracking.pictures import MaskedPicture, sheet
from mois.tracking.settings import TrackingSettings
from mois.tracking.tracker import Tracker
from tests.support.wandb_records import read_back

MASK = np.pad(np.array([[1, 2]], np.uint8), ((3, 4), (3, 3)))  # (8, 8)
PICTURE = MaskedPicture(np.zeros((8, 8, 3), np.uint8), {"truth": MASK, "model": MASK}, {1: "bright", 2: "dark"})
ROWS = [["anna", "bright", 0.5, True, np.full((4, 4, 3), 9, np.uint8)], ["anna", "dark", 1.5, False, None]]
COLUMNS = ["scan", "type", "ml", "found", "picture"]


class Told(NamedTuple):
    """What a logger has recorded, in its own words."""

    scalars: dict[str, list[tuple[int, float]]]
    settings: str
    pictures: set[str]
    tables: str
    artifacts: str


def of_wandb(folder: Path, logger: Logger) -> Told:
    records: list[Any] = read_back(folder)
    items = [record["history"]["item"] for record in records if "history" in record]
    scalars = {"train/loss": [(i["trainer/global_step"], i["train/loss"]) for i in items if "train/loss" in i]}
    pictures = {name.removesuffix("._type") for item in items for name in item if name.endswith("._type")}
    files = "".join(file.read_text() for file in (folder / "wandb").rglob("*.table.json"))
    made = [record["artifact"] for record in records if "artifact" in record and "made_from" in str(record)]
    return Told(scalars, json.dumps(records), pictures, files, json.dumps(made))


def of_tensorboard(folder: Path, logger: Logger) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger.save()
    logger.experiment.flush()  # type: ignore[attr-defined]
    events = EventAccumulator(str(logger.log_dir))  # type: ignore[attr-defined]
    events.Reload()
    tags = events.Tags()
    told = [event.tensor_proto.string_val[0].decode() for tag in tags["tensors"] for event in events.Tensors(tag)]
    scalars = {"train/loss": [(event.step, event.value) for event in events.Scalars("train/loss")]}
    settings = "".join(file.read_text() for file in Path(str(logger.log_dir)).glob("hparams.yaml"))  # type: ignore[attr-defined]
    return Told(scalars, settings, set(tags["images"]), "\n".join(told), "\n".join(told))


def of_mlflow(folder: Path, logger: Logger) -> Told:
    assert isinstance(logger, MLFlowLogger)
    client, run_id = logger.experiment, logger.run_id
    run = client.get_run(run_id)
    scalars = {"train/loss": [(one.step, one.value) for one in client.get_metric_history(run_id, "train/loss")]}
    stored = {one.path for one in client.list_artifacts(run_id, "images")}
    pictures = {re.split("[%+]", Path(path).name)[0].replace("~", "/") for path in stored}
    tables = Path(client.download_artifacts(run_id, "tables")) / "val"
    text = "".join(file.read_text() for file in tables.glob("*.json"))
    return Told(scalars, json.dumps(run.data.params), pictures, text, json.dumps(run.data.tags))


def wandb_logger(folder: Path) -> Logger:
    return make_loggers(folder, TrackingSettings(wandb="offline"))[1]


def tensorboard_logger(folder: Path) -> Logger:
    pytest.importorskip("tensorboard", reason="the extra loggers is not installed")
    return TensorBoardLogger(str(folder), name="tensorboard")


def mlflow_logger(folder: Path) -> Logger:
    pytest.importorskip("mlflow", reason="the extra loggers is not installed")
    pytest.importorskip("sqlalchemy", reason="the extra loggers is not installed")
    at = f"sqlite:///{folder / 'mlflow.db'}"
    return MLFlowLogger("cubes", tracking_uri=at, artifact_location=f"file://{folder / 'artifacts'}")


LOGGERS = [(wandb_logger, of_wandb), (tensorboard_logger, of_tensorboard), (mlflow_logger, of_mlflow)]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "staging"))


@pytest.mark.parametrize(("make", "read"), LOGGERS, ids=["wandb", "tensorboard", "mlflow"])
def test_every_logger_gets_the_same(
    tmp_path: Path, make: Callable[[Path], Logger], read: Callable[[Path, Logger], Told]
) -> None:
    logger = make(tmp_path)
    names = Names(True, b"key")
    tracker = Tracker(tmp_path, [CsvLogger(tmp_path, names=names), logger])
    tracker.know(["anna"], [tmp_path / "clinic"])
    tracker.settings({"seed": 3, "root": tmp_path / "clinic"})
    tracker.scalars({"train/loss": 0.25}, step=4)
    tracker.scalars({"train/loss": 0.125}, step=7)
    tracker.picture("val/overlay", torch.zeros(6, 5, 3, dtype=torch.uint8), step=4, caption="anna: 1 of 2")
    tracker.masks("val/scan1", PICTURE, step=4, caption="anna")
    tracker.table("val/lesions", COLUMNS, ROWS, step=4)
    (tmp_path / "report.txt").write_text("seven lesions")
    tracker.artifact("report", tmp_path / "report.txt", "result", {"dataset": "data-0123"}, {"seed": 3})

    told = read_after(tracker, read, logger)
    assert told.scalars == {"train/loss": [(4, 0.25), (7, 0.125)]}
    assert "seed" in told.settings
    assert {"val/overlay", "val/scan1"} <= told.pictures
    assert all(word in told.tables for word in ("bright", "dark", "1.5", "ml", names.name("anna")))
    assert "data-0123" in told.artifacts
    for text in (told.settings, told.tables, told.artifacts):
        assert "anna" not in text.replace(str(tmp_path), "")
        assert "clinic" not in text
    assert (tmp_path / "tables" / "val" / "lesions_000004.csv").read_text().splitlines()[1:] == [
        "anna,bright,0.5,True,1",
        "anna,dark,1.5,False,",
    ]
    assert {"val/overlay_000004.png", "val/scan1_000004.png"} <= {
        str(file.relative_to(tmp_path / "pictures")) for file in (tmp_path / "pictures").rglob("*.png")
    }


def read_after(tracker: Tracker, read: Callable[[Path, Logger], Told], logger: Logger) -> Told:
    tracker.finish()
    return read(tracker.folder, logger)


def test_a_local_store_of_mlflow_sends_nothing_but_a_server_does(tmp_path: Path) -> None:
    settings = TrackingSettings()
    assert not hashes_names(settings, [mlflow_logger(tmp_path)])
    assert hashes_names(settings, [MLFlowLogger("a", tracking_uri="http://127.0.0.1:9")])
    assert not hashes_names(settings, [tensorboard_logger(tmp_path)])


def test_masks_are_coloured_by_class_beside_their_slice_and_sheets_have_rows_of_eight() -> None:
    row = PICTURE.side_by_side()
    assert row.shape == (8, 24, 3)
    assert row[3, 11].tolist() == [43, 90, 116]  # half of the colour of class 1, over black
    assert row[3, 12].tolist() == [115, 80, 0]
    page = sheet([np.full((4, 4, 3), number, np.uint8) for number in range(1, 11)])
    assert page.shape == (12, 48, 3)
    assert page[6, 7].tolist() == [10, 10, 10]


@pytest.mark.parametrize(("names", "hidden"), [("hashed", True), ("plain", False)])
def test_hashed_runs_at_mlflow_name_neither_user_nor_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Literal["hashed", "plain"], hidden: bool
) -> None:
    monkeypatch.setenv("LOGNAME", "doctor-jekyll")
    logger = mlflow_logger(tmp_path)
    assert isinstance(logger, MLFlowLogger)
    make_loggers(tmp_path, TrackingSettings(names=names), others=[logger])
    tags = logger.experiment.get_run(logger.run_id).data.tags
    assert ("doctor-jekyll" not in str(tags)) == hidden
    assert (tags["mlflow.source.name"] == "mois") == hidden
