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

os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # otherwise wandb looks up its own server, also offline

SERVER_TIMEOUT_S = 10.0
ONLINE, OFFLINE, DISABLED = ("online", "shared", "run"), ("offline", "dryrun"), ("disabled",)
"""Values of WANDB_MODE that wandb knows."""

LOG_IN = "run `wandb login`, or set WANDB_API_KEY"


class Choice(NamedTuple):
    """How W&B records.

    Attributes:
        mode: The mode. Online still needs the answer of the server.
        key: Key for recording online; "" if there is none.
        reason: Why the mode is not online although the user wants it; "" otherwise.
    """

    mode: Literal["online", "offline", "disabled"]
    key: str = ""
    reason: str = ""


def choose(setting: str = "auto") -> Choice:
    """Return how W&B records. Of the environment and the run's setting, the one that records less wins.

    A key of `wandb login` alone uploads nothing. The user has to set WANDB_MODE=online or WANDB_API_KEY.

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
    """Return the key that `wandb login` stored for the configured server; "" if there is none."""
    places = [os.environ.get("NETRC"), "~/.netrc", "~/_netrc"]
    try:
        file = next((path for place in places if place and (path := Path(place).expanduser()).is_file()), None)
        credentials = netrc.netrc(file).authenticators(urllib.parse.urlsplit(wandb_server()).netloc) if file else None
    except (OSError, RuntimeError, netrc.NetrcParseError, UnicodeDecodeError):  # a RuntimeError without a home folder
        return ""
    return (credentials[2] or "") if credentials else ""


def forget_unknown_mode() -> None:
    """Remove a WANDB_MODE that wandb does not know from the environment: wandb would fail."""
    if os.environ.get("WANDB_MODE") not in (None, *ONLINE, *OFFLINE, *DISABLED):
        del os.environ["WANDB_MODE"]


def trial_of_agent() -> str:
    """Return the id of the run that an agent of a W&B sweep asks for; "" outside of a sweep."""
    return os.environ.get("WANDB_RUN_ID", "") if os.environ.get("WANDB_SWEEP_ID") else ""


def wandb_server() -> str:
    """Return the address of the configured W&B server."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or str(wandb.setup().settings.base_url)


def why_unreachable(server: str, key: str, timeout_s: float) -> str | None:
    """Ask a W&B server whether it accepts a key. Return the reason why not; None if it does.

    The function returns after `timeout_s` seconds at the latest, also if the look-up of the server's name hangs.
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
    """Return the first line of an error's message, at most 120 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
