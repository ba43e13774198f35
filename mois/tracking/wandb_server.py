"""Decides within seconds whether W&B records online, offline or not at all."""

from __future__ import annotations

import base64
import json
import netrc
import os
import threading
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Literal, NamedTuple

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else wandb asks the DNS for its maker's host, also offline

SERVER_TIMEOUT_S = 10.0
ONLINE, OFFLINE, DISABLED = ("online", "shared", "run"), ("offline", "dryrun"), ("disabled",)
"""Values of WANDB_MODE that wandb knows."""

LOG_IN = "run `wandb login`, or set WANDB_API_KEY"


class Choice(NamedTuple):
    """How W&B records.

    Attributes:
        mode: Online still depends on what the server says.
        key: To record online with; empty where there is none.
        reason: Why it is not online although that was asked for, or empty.
    """

    mode: Literal["online", "offline", "disabled"]
    key: str = ""
    reason: str = ""


def choose(setting: str = "auto") -> Choice:
    """Return how W&B records, by the environment and a run's setting; the one that says less wins.

    A key of `wandb login` alone uploads nothing: WANDB_MODE=online or WANDB_API_KEY says that it is wanted.

    Args:
        setting: `tracking.wandb`: auto, offline or disabled.
    """
    mode = os.environ.get("WANDB_MODE", "")
    if setting == "disabled" or mode in DISABLED:
        return Choice("disabled")
    if mode and mode not in ONLINE + OFFLINE:
        return Choice("offline", reason=f"WANDB_MODE={mode} is none of online, offline and disabled")
    if setting == "offline" or mode in OFFLINE:
        return Choice("offline")
    key = os.environ.get("WANDB_API_KEY", "")
    if mode in ONLINE:
        key = key or logged_in_key()
        return Choice("online", key) if key else Choice("offline", reason=f"there is no key; {LOG_IN}")
    return Choice("online", key) if key else Choice("offline")


def logged_in_key() -> str:
    """Return the key that `wandb login` left for the server that is set up here; nothing where there is none."""
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    try:
        file = next((path for place in places if place and (path := Path(place).expanduser()).is_file()), None)
        credentials = netrc.netrc(file).authenticators(urllib.parse.urlsplit(wandb_server()).netloc) if file else None
    except (OSError, RuntimeError, netrc.NetrcParseError, UnicodeDecodeError):  # a RuntimeError where there is no home
        return ""
    return (credentials[2] or "") if credentials else ""


def forget_unknown_mode() -> None:
    """Take a WANDB_MODE that wandb would fail at out of the environment."""
    if os.environ.get("WANDB_MODE") not in (None, *ONLINE, *OFFLINE, *DISABLED):
        del os.environ["WANDB_MODE"]


def wandb_server() -> str:
    """Return the address of the W&B server that is set up here."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)


def why_unreachable(server: str, key: str, timeout_s: float) -> str | None:
    """Ask a W&B server whether it accepts a key; return the reason why not, or None where it does.

    It comes back after `timeout_s` seconds at the latest, also where looking up the server's name hangs.
    """
    reasons: list[str | None] = []
    thread = threading.Thread(target=lambda: reasons.append(_ask_server(server, key, 2 * timeout_s)), daemon=True)
    thread.start()
    thread.join(timeout_s)
    return reasons[0] if reasons else f"{server} did not answer within {timeout_s:g} s"


def _ask_server(server: str, key: str, timeout_s: float) -> str | None:
    request = urllib.request.Request(
        f"{server.rstrip('/')}/graphql",
        data=json.dumps({"query": "query { viewer { id } }"}).encode(),
        headers={
            "Content-Type": "application/json",
            "Authorization": "Basic " + base64.b64encode(f"api:{key}".encode()).decode(),
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            content = json.load(answer)
    except urllib.error.HTTPError as error:
        return f"{server} answered HTTP {error.code}" + (" (is the key valid?)" if error.code == 401 else "")
    except (OSError, ValueError) as error:
        return f"{server} cannot be reached ({first_line(error)})"
    viewer = (content.get("data") or {}).get("viewer") if isinstance(content, dict) else None
    return None if viewer else f"{server} does not know the key"


def first_line(error: Exception) -> str:
    """Return the start of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
