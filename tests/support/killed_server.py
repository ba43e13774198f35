"""A server of a viewer as a program, for tests that kill it.

One process imports torch once and forks a server for each line, so that 20 starts take seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

from mois.serve.host import Host
from mois.serve.nninteractive.routes import nninteractive_app
from mois.serve.page import page_app
from mois.serve.running import bound_socket, serve
from tests.support.nninteractive_story import TOKEN
from tests.support.paths import ROOT
from tests.support.session_fakes import make_model, three_lesions


class KilledServer:
    """A server that can be killed and started again, at the same port.

    Args:
        viewer: page or nninteractive.
        studies: Folder of its sessions.

    Attributes:
        url: Its address; of the page with its token.
    """

    def __init__(self, viewer: str, studies: Path) -> None:
        self._starter = subprocess.Popen(
            [sys.executable, "-m", "tests.support.killed_server", viewer, str(studies)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._port, self._viewer = "0", viewer
        self.start()

    def start(self) -> None:
        self._starter.stdin.write(f"{self._port}\n")
        self._starter.stdin.flush()
        process, self._port = self._starter.stdout.readline().split()
        self._process = int(process)
        self.url = f"http://127.0.0.1:{self._port}" + (f"/{TOKEN}/" if self._viewer == "page" else "")

    def kill(self) -> None:
        os.kill(self._process, signal.SIGKILL)

    def end(self) -> None:
        self._starter.kill()
        self._starter.wait()


def free_again(port: int) -> socket.socket:
    """A socket at a port, as soon as the system has taken it from the server that was killed."""
    end = time.monotonic() + 20
    while True:
        try:
            return bound_socket("127.0.0.1", port)
        except ValueError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def main(viewer: str, studies: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        listening = free_again(int(line))
        listening.listen()
        child = os.fork()
        if child == 0:
            host = Host(studies, make_model())
            app = page_app(host, three_lesions()._replace(path="")) if viewer == "page" else nninteractive_app(host)
            serve(app, listening, TOKEN, ended=host.close)
            os._exit(0)
        sys.stdout.write(f"{child} {listening.getsockname()[1]}\n")
        sys.stdout.flush()
        listening.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
