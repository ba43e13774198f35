"""Generated requests to the page's server: none is a mistake of the server, and memory does not grow."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mois.serve.host import Host
from mois.serve.page import page_app
from mois.serve.served_models import ServedModels
from mois.sharing.bundle import Bundle
from tests.support.browser import served_page
from tests.support.session_fakes import make_model, three_lesions

SECONDS = 30
MOST_GROWTH_MIB = 60


def resident_mib() -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) // 1024


@pytest.mark.ci
def test_no_generated_request_breaks_the_page(tmp_path: Path) -> None:
    """Requests by the schema of all paths, but the one that closes the page."""
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("schemathesis is not installed")
    scan = three_lesions()._replace(path="")
    host = Host(tmp_path / "none", make_model())
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(page_app(host, scan).openapi()), encoding="utf-8")
    host.close()
    models = ServedModels(make_model(), load=lambda bundle: Bundle.load(bundle, "cpu").model())
    with served_page(models, scan, tmp_path / "studies") as url:
        before = resident_mib()
        command = [str(program), "run", str(schema), "--url", url.rstrip("/"), "-H", "X-Reader: aaaaaaaa"]
        command += ["--exclude-path", "/leave", "--checks", "not_a_server_error", "--max-time", str(SECONDS)]
        command += ["--seed", "1", "--generation-database", "none", "--no-color"]
        run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert run.returncode == 0, run.stdout[-3000:]
        assert resident_mib() - before < MOST_GROWTH_MIB
