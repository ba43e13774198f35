"""Whether a W&B server can be used, found out within seconds."""

from __future__ import annotations

import base64
import json
import os
import threading
import urllib.error
import urllib.request

SERVER_TIMEOUT_S = 10.0


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
        return f"{server} answered HTTP {error.code}" + (" (is WANDB_API_KEY valid?)" if error.code == 401 else "")
    except (OSError, ValueError) as error:
        return f"{server} cannot be reached ({first_line(error)})"
    viewer = (content.get("data") or {}).get("viewer") if isinstance(content, dict) else None
    return None if viewer else f"{server} does not know WANDB_API_KEY"


def first_line(error: Exception) -> str:
    """Return the start of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
