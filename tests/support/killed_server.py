"""A server of nnInteractive that is started anew for each line on its input; run as a program by a test that kills it.

One process imports torch once and forks a server for each line, so that 20 starts take seconds.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

from mois.serve.host import Host
from mois.serve.nninteractive.routes import nninteractive_app
from mois.serve.running import bound_socket, serve
from tests.support.nninteractive_story import TOKEN
from tests.support.session_fakes import make_model


def main(studies: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for _ in sys.stdin:
        listening = bound_socket("127.0.0.1", 0)
        listening.listen()
        child = os.fork()
        if child == 0:
            host = Host(studies, make_model())
            serve(nninteractive_app(host), listening, TOKEN, ended=host.close)
            os._exit(0)
        sys.stdout.write(f"{child} {listening.getsockname()[1]}\n")
        sys.stdout.flush()
        listening.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
