"""Play requests through MONAI Label's own client. Run in the environment of `make viewers`.

python tests/support/monailabel_client.py URL FOLDER < requests.json

A request is {"do": "infer" | "save" | "next" | "upload" | "create_session" | "info" | "datastore", ...}. Each answer is
one line of JSON; a refusal is {"refused": "..."}. Masks are stored as FOLDER/NUMBER.nii.gz.
"""

import json
import shutil
import sys
import types
from pathlib import Path

sys.modules.setdefault("pydicom_seg", types.ModuleType("pydicom_seg"))
from monailabel.client import MONAILabelClient  # noqa: E402
from monailabel.client.client import MONAILabelClientException  # noqa: E402

SESSIONS: list[str] = []
"""Ids of the sessions that were made here."""


def answer(client: MONAILabelClient, request: dict, number: int, folder: Path) -> object:
    given = {name: value for name, value in request.items() if name != "do"}
    client._client_id = given.get("params", {}).pop("client_id", None)  # it writes its own name into the parameters
    if request["do"] == "infer":
        session = SESSIONS[-1] if given.get("session") else None
        file, params = client.infer(
            given["model"], given.get("image", "scan"), given.get("params", {}), session_id=session
        )
        shutil.move(file, folder / f"{number}.nii.gz")
        return params
    if request["do"] == "save":
        return client.save_label(given.get("image", "scan"), given["file"], params=given.get("params"))
    if request["do"] == "next":
        return client.next_sample(given["strategy"], {})
    if request["do"] == "upload":
        return client.upload_image(given["file"], given["image"])
    if request["do"] == "create_session":
        made = client.create_session(given["file"])
        SESSIONS.append(made["session_id"])
        return made
    return getattr(client, request["do"])()


def main(url: str, folder: Path) -> None:
    client = MONAILabelClient(url, tmpdir=str(folder))
    for number, request in enumerate(json.load(sys.stdin)):
        try:
            said = answer(client, request, number, folder)
        except MONAILabelClientException as error:
            said = {"refused": error.msg}
        sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
