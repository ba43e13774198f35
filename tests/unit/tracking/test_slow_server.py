"""A W&B server that does not answer costs a run 30 seconds at most."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mois.tracking.settings import TrackingSettings
from mois.tracking.wandb_logger import CarefulWandbLogger
from tests.support.wandb_records import read_back

pytestmark = pytest.mark.ci
MOST_S = 30.0


@pytest.fixture(params=[0, 1], ids=["never", "only the check"])
def hanging(request: pytest.FixtureRequest) -> Iterator[str]:
    """A server that answers so many requests, and then keeps every client waiting."""
    left, over = [request.param], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            left[0] -= 1
            if left[0] < 0:
                over.wait(300)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"viewer": {"id": "1"}}}).encode())

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *args: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    over.set()
    httpd.shutdown()


def test_a_server_that_hangs_costs_seconds_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hanging: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", hanging)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    began_s = time.monotonic()
    logger = CarefulWandbLogger(tmp_path, TrackingSettings())
    with pytest.warns(UserWarning, match="W&B is recorded offline"):
        logger.log_metrics({"train/loss": 1.0}, step=0)
    logger.finish()
    assert time.monotonic() - began_s < MOST_S
    assert any("history" in record for record in read_back(tmp_path))
