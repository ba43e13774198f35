from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
import wandb

from mois.cli.doctor_checks import tracking as doctors_tracking
from mois.tracking.loggers import CsvLogger, make_loggers
from mois.tracking.settings import TrackingSettings
from mois.tracking.tracker import Tracker
from mois.tracking.wandb_logger import CarefulWandbLogger
from mois.tracking.wandb_server import Choice, choose, logged_in_key, why_unreachable
from tests.support.paths import ROOT
from tests.support.wandb_records import read_back

CLOSED = "http://127.0.0.1:9"
KEY = "a" * 40


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/nowhere")
    monkeypatch.setenv("HOME", "/nowhere")


@pytest.fixture
def server() -> Iterator[tuple[str, dict[str, object]]]:
    """A stand-in for W&B's server; the test says what it answers."""
    answer: dict[str, object] = {"status": 200, "body": {}, "wait_s": 0.0}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            time.sleep(float(str(answer["wait_s"])))
            self.send_response(int(str(answer["status"])))
            answer["status"] = answer.get("then", answer["status"])
            self.end_headers()
            self.wfile.write(json.dumps(answer["body"]).encode())

        def log_message(self, *args: object) -> None:
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", answer
    httpd.shutdown()


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_csv_gains_a_column_and_keeps_the_rows_before(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"train/loss": 2.0}, step=0)
    logger.log_metrics({"val/right": 0.5}, step=1)
    assert rows(tmp_path) == [
        {"step": "0", "train/loss": "2.0", "val/right": ""},
        {"step": "1", "train/loss": "", "val/right": "0.5"},
    ]


def test_resumed_csv_drops_the_steps_that_are_run_again(tmp_path: Path) -> None:
    first = CsvLogger(tmp_path)
    for step in range(4):
        first.log_metrics({"train/loss": float(step)}, step)
    CsvLogger(tmp_path, resume_step=2).log_metrics({"train/loss": 9.0}, step=2)
    assert [(row["step"], row["train/loss"]) for row in rows(tmp_path)] == [("0", "0.0"), ("1", "1.0"), ("2", "9.0")]


def test_later_commands_add_to_the_csv(tmp_path: Path) -> None:
    CsvLogger(tmp_path).log_metrics({"train/loss": 1.0}, step=7)
    CsvLogger(tmp_path).log_metrics({"test/right": 0.75}, step=0)
    assert [row["step"] for row in rows(tmp_path)] == ["7", "0"]


def test_offline_run_holds_what_was_recorded(tmp_path: Path) -> None:
    report = tmp_path / "report.txt"
    report.write_text("seven lesions")
    tracker = Tracker(tmp_path, make_loggers(tmp_path, TrackingSettings(tags=["test"]), run_id="0123abcd"))
    tracker.settings({"seed": 3, "folder": tmp_path})
    tracker.scalars({"train/loss": 0.25}, step=4)
    tracker.picture("val/overlay", torch.full((2, 3, 3), 255, dtype=torch.uint8), step=4, caption="found 1 of 2")
    tracker.table("val/lesions", ["lesion", "volume_ml"], [[1, 0.5], [2, 12.0]], step=4)
    tracker.artifact("report", report)
    tracker.finish()

    records = read_back(tmp_path)
    history = [record["history"]["item"] for record in records if "history" in record]
    assert {"train/loss": 0.25, "trainer/global_step": 4}.items() <= history[0].items()  # type: ignore[attr-defined]
    text = json.dumps(records)
    assert '"run_id": "0123abcd"' in text
    assert '"seed": 3' in text
    assert "found 1 of 2" in text
    assert '"volume_ml"' in text or "val/lesions" in text
    assert any("artifact" in record for record in records)
    assert (tmp_path / "pictures" / "val" / "overlay_000004.png").is_file()
    assert (tmp_path / "tables" / "val" / "lesions_000004.csv").read_text(encoding="utf-8").splitlines()[2] == "2,12.0"
    assert float(rows(tmp_path)[0]["train/loss"]) == 0.25


def test_picture_of_wrong_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"picture a is torch.float32 \(2, 2\); give uint8 \(H, W, 3\)"):
        Tracker(tmp_path).picture("a", torch.zeros(2, 2), step=0)


def test_unreachable_server_is_not_even_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", CLOSED)
    logger = CarefulWandbLogger(tmp_path, TrackingSettings())
    init, modes = wandb.init, []
    monkeypatch.setattr(wandb, "init", lambda **given: (modes.append(given["mode"]), init(**given))[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finish()
    assert modes == ["offline"]  # an online one would wait for the server
    lines = [str(warning.message) for warning in caught if "W&B" in str(warning.message)]
    assert len(lines) == 1
    assert lines[0].startswith(f"W&B is recorded offline, because {CLOSED} cannot be reached")
    assert any("history" in record for record in read_back(tmp_path))


def test_server_that_refuses_the_run_after_the_check_falls_back_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, dict[str, object]]
) -> None:
    address, answer = server
    answer.update(body={"data": {"viewer": {"id": "1"}}}, then=500)  # the check passes, all that comes after it fails
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    logger = CarefulWandbLogger(tmp_path, TrackingSettings(), server_timeout_s=1.0)
    with pytest.warns(UserWarning, match="W&B is recorded offline"):
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finish()
    assert any("history" in record for record in read_back(tmp_path))


@pytest.mark.parametrize(
    ("status", "body", "wait_s", "reason"),
    [
        (200, {"data": {"viewer": {"id": "1"}}}, 0.0, None),
        (200, {"data": {"viewer": None}}, 0.0, "does not know the key"),
        (401, {}, 0.0, "answered HTTP 401 (is the key valid?)"),
        (200, {}, 1.0, "did not answer within 0.3 s"),
    ],
)
def test_what_a_server_may_answer(
    server: tuple[str, dict[str, object]], status: int, body: object, wait_s: float, reason: str | None
) -> None:
    address, answer = server
    answer.update(status=status, body=body, wait_s=wait_s)
    found = why_unreachable(address, KEY, timeout_s=300.0 if wait_s == 0 else 0.3)
    assert found == (None if reason is None else f"{address} {reason}")


def test_an_error_of_wandb_does_not_stop_the_run(tmp_path: Path) -> None:
    logger = CarefulWandbLogger(tmp_path, TrackingSettings())
    with pytest.warns(UserWarning, match="W&B stopped recording .* the run goes on"):
        logger.log_table("t", columns=["a"], data=[[1], ["text"]])
    logger.log_metrics({"train/loss": 1.0}, step=1)


def test_off_leaves_only_the_csv(tmp_path: Path) -> None:
    assert [type(logger) for logger in make_loggers(tmp_path, TrackingSettings(wandb="disabled"))] == [CsvLogger]


def log_in(folder: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Leave a key for a server as `wandb login` does."""
    host = address.removeprefix("http://")
    (folder / "netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n", encoding="utf-8")
    monkeypatch.setenv("NETRC", str(folder / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", address)


NONSENSE = "WANDB_MODE=onlin is none of online, offline and disabled"
NO_KEY = "there is no key; run `wandb login`, or set WANDB_API_KEY"


@pytest.mark.parametrize(
    ("mode", "key", "logged_in", "choice"),
    [
        (None, False, False, Choice("offline")),
        (None, False, True, Choice("offline")),  # a login alone uploads nothing
        (None, True, False, Choice("online", KEY)),
        ("", True, False, Choice("online", KEY)),
        ("online", False, True, Choice("online", KEY)),
        ("online", True, False, Choice("online", KEY)),
        ("online", False, False, Choice("offline", reason=NO_KEY)),
        ("shared", False, True, Choice("online", KEY)),
        ("run", False, True, Choice("online", KEY)),
        ("offline", True, True, Choice("offline")),
        ("dryrun", True, True, Choice("offline")),
        ("disabled", True, True, Choice("disabled")),
        ("onlin", True, True, Choice("offline", reason=NONSENSE)),
    ],
)
def test_the_environment_says_how_wandb_records_and_doctor_says_the_same(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    server: tuple[str, dict[str, object]],
    mode: str | None,
    key: bool,
    logged_in: bool,
    choice: Choice,
) -> None:
    address, answer = server
    answer.update(body={"data": {"viewer": {"id": "1"}}})
    monkeypatch.setenv("WANDB_BASE_URL", address)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    if key:
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    if logged_in:
        log_in(tmp_path, monkeypatch, address)
    assert choose() == choice
    assert choose("disabled") == Choice("disabled")
    assert choose("offline").mode == ("disabled" if mode == "disabled" else "offline")
    finding = doctors_tracking()
    assert finding.good == (choice.reason == "")
    assert finding.text.startswith(f"W&B {choice.mode}")
    assert choice.reason in finding.text
    loggers = [type(logger) for logger in make_loggers(tmp_path, TrackingSettings())]
    assert loggers == ([CsvLogger] if choice.mode == "disabled" else [CsvLogger, CarefulWandbLogger])


def test_doctor_tells_how_a_login_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, dict[str, object]]
) -> None:
    log_in(tmp_path, monkeypatch, server[0])
    assert doctors_tracking().text == (
        "W&B offline, in the run's folder; set WANDB_MODE=online, since there is a key of `wandb login`, to record "
        "online"
    )
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert doctors_tracking().text == "W&B disabled (WANDB_MODE=disabled)"


def test_a_login_is_tried_where_online_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: tuple[str, dict[str, object]]
) -> None:
    address, answer = server
    answer.update(body={"data": {"viewer": {"id": "1"}}}, then=500)  # the check passes, all that comes after it fails
    log_in(tmp_path, monkeypatch, address)
    monkeypatch.setenv("WANDB_MODE", "online")
    logger = CarefulWandbLogger(tmp_path, TrackingSettings(), server_timeout_s=1.0)
    init, modes = wandb.init, []
    monkeypatch.setattr(wandb, "init", lambda **given: (modes.append(given["mode"]), init(**given))[1])
    with pytest.warns(UserWarning, match="W&B is recorded offline"):
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finish()
    assert modes == ["online", "offline"]


@pytest.mark.parametrize(("mode", "reason"), [("onlin", NONSENSE), ("online", NO_KEY)])
def test_a_mode_that_cannot_be_is_said_and_recorded_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, reason: str
) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    logger = CarefulWandbLogger(tmp_path, TrackingSettings())
    with pytest.warns(UserWarning, match=f"W&B is recorded offline, because {reason}"):
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finish()
    assert any("history" in record for record in read_back(tmp_path))


@pytest.mark.parametrize("content", ["machine", "machine other.example\n  login user\n  password x\n", "\xff"])
def test_a_netrc_without_a_key_is_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    (tmp_path / "netrc").write_text(content, encoding="latin-1")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert logged_in_key() == ""


@pytest.mark.parametrize(("given", "left"), [(None, "false"), ("true", "true")])
def test_wandb_reports_its_errors_to_nobody_unless_it_is_asked_to(given: str | None, left: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_ERROR_REPORTING"}
    code = (
        "import os, sys, mois.tracking.loggers\nassert 'wandb' not in sys.modules\n"
        "import wandb.env\nprint(os.environ['WANDB_ERROR_REPORTING'], wandb.env.error_reporting_enabled())"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | ({} if given is None else {"WANDB_ERROR_REPORTING": given}),
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    assert said.stdout.split() == [left, str(left == "true")]
