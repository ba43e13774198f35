"""The app that MONAI Label loads: its tasks, its strategy, and what happens when a label is saved."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy

from mois.scans.image_files import write_volume
from mois.serve.monailabel_app import reader
from mois.serve.monailabel_app.images import ENDINGS, Images, OpenImage, checked_id
from mois.serve.monailabel_app.saved_labels import FOLDER, add_to_dataset
from mois.serve.monailabel_app.tasks import FIRST_LABELS, TASKS, Task


class SessionTask(InferTask):
    """A task as MONAI Label lists it. `LesionApp.infer` runs it."""

    def __init__(self, task: Task) -> None:
        super().__init__(type=task.kind, labels=task.labels, dimension=3, description=task.description)
        self.run = task.run

    def is_valid(self) -> bool:
        """Return True: the model is there once the app is."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Run the task on an opened image.

        Returns:
            A new file of the lesions, which the server removes once it is sent, and facts about the lesions.
        """
        answer = self.run(request["opened"], request)
        with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as file:
            write_volume(answer.labels, answer.affine, Path(file.name))
        return file.name, answer.params


class ExpectedGain(Strategy):
    """Offers the image on which the reader's next action helps most; then images that were never propagated."""

    def __init__(self) -> None:
        super().__init__("The image on which your next click, acceptance or rejection is expected to help most")

    def __call__(self, request: Mapping[str, Any], datastore: LocalDatastore) -> dict[str, Any] | None:
        """Return the id of the image; None if every image has a saved label."""
        images = sorted(datastore.get_unlabeled_images())
        if not images:
            return None
        return {"id": max(images, key=lambda image: _benefit(datastore.get_image_info(image)))}


def _benefit(info: Mapping[str, Any]) -> float:
    """Return the benefit of the next action on an image; below 0 if it was never propagated."""
    suggestion = info.get("suggestion")
    return float(suggestion["benefit"]) if suggestion else -1.0


class ImageStore(LocalDatastore):
    """The folder of images. Names that lead out of the folder are refused, and so are files that are no images."""

    def __init__(self, images: Images) -> None:
        self._images = images
        self.saved: dict[str, dict[str, Any]] = {}
        super().__init__(str(images.folder), extensions=[f"*{ending}" for ending in ENDINGS], auto_reload=False)

    def get_unlabeled_images(self, label_tag: str | None = None, labels: list[str] | None = None) -> list[str]:
        """Return the images without a saved label, as they are in the folder now."""
        self.refresh()  # instead of a thread that watches the folder with all sessions
        unlabeled: list[str] = super().get_unlabeled_images(label_tag, labels)
        return unlabeled

    def status(self) -> dict[str, Any]:
        """Return how many images and labels are in the folder now."""
        self.refresh()
        known: dict[str, Any] = super().status()
        return known

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an uploaded image."""
        self._refuse_links(image_id, self._datastore.image_path(), image_filename)
        self._images.read(Path(image_filename), image_id)
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label of an image. The lesions of a final label are accepted before."""
        checked_id(label_tag, "tag")
        self._refuse_links(image_id, self._datastore.label_path(label_tag), label_filename)
        if label_tag == DefaultLabelTag.FINAL:
            self.saved[image_id] = self._accept(image_id, Path(label_filename), label_info)
        return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def _accept(self, image_id: str, file: Path, info: Mapping[str, Any]) -> dict[str, Any]:
        """Accept the lesions of a label, write the results of the session, and add both to the dataset."""
        opened = self._images.open(info.get("client_id"), image_id)
        labels, names = opened.read_label(file), reader.names_of_values(info.get("label_info"))
        done = opened.do(lambda session, known: reader.accept(session, known, labels, names))
        accepted = opened.do(lambda session, _: reader.accepted_lesions(session))
        opened.do(lambda session, _: session.save())
        add_to_dataset(self._images.folder / FOLDER, image_id, opened.volume, accepted)
        return asdict(done)

    def _refuse_links(self, image_id: str, folder: str, file: str) -> None:
        """Refuse to write through a link, under a name with folders, or with an ending that is no image's."""
        name = checked_id(image_id)
        ending = next((ending for ending in ENDINGS if file.endswith(ending)), None)
        if ending is None:
            raise ValueError(f"the file must end in one of {', '.join(ENDINGS)}.")
        home, target = self._images.folder.resolve(), Path(folder) / f"{name}{ending}"
        if target.is_symlink() or not target.resolve().is_relative_to(home):
            raise ValueError(f"image={name}: a link stands in its place, and is not followed; remove the link.")


class LesionApp(MONAILabelApp):
    """Click lesions, find the lesions like them, reject and accept them."""

    served: ClassVar[dict[str, Images]] = {}
    """Folder -> the images that this process serves. `mois.serve.monailabel_app.server` fills it."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.images = self.served[studies]
        super().__init__(
            app_dir,
            studies,
            dict(conf),
            name="mois",
            description="Click a few lesions, find all the others that look like them. No medical device.",
            labels=FIRST_LABELS,
        )

    def init_datastore(self) -> ImageStore:
        """Return the folder of images."""
        return ImageStore(self.images)

    def init_infers(self) -> dict[str, SessionTask]:
        """Return the tasks."""
        return {name: SessionTask(task) for name, task in TASKS.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the order in which images are offered."""
        return {"expected_gain": ExpectedGain()}

    def infer(self, request: Mapping[str, Any], datastore: object = None) -> dict[str, Any]:
        """Run a task on an image of the folder, or on an image that was uploaded for a while.

        Raises:
            ValueError: If there is no such task or image, or the task refuses the request.
        """
        name = request.get("model")
        if name not in self._infers:
            raise ValueError(f"model={str(name)[:40]!a}: there is no such task; choose {', '.join(self._infers)}.")
        file, params = self._infers[name]({**request, "opened": self._opened(request)})
        if "suggestion" in params and "session" not in request:
            with suppress(ImageNotFoundException):  # a file that the server has not listed yet
                self.datastore().update_image_info(request["image"], {"suggestion": params["suggestion"]})
        return {"label": file, "tag": DefaultLabelTag.ORIGINAL, "file": file, "params": params}

    def _opened(self, request: Mapping[str, Any]) -> OpenImage:
        """Open the image of a request. A client cannot name a file: paths are those of the server's own uploads."""
        if "session" not in request:
            return self.images.open(request.get("client_id"), request.get("image"))
        uploads, file = Path(self.sessions().store_path).resolve(), Path(str(request.get("image"))).resolve()
        if not file.is_relative_to(uploads):
            raise ValueError("session is set by the server alone; give the id of an image.")
        return self.images.open_file(request.get("client_id"), file, file.parent.name, passing=True)

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Return what saving the label did: the lesions that are accepted, left out, and open."""
        done: dict[str, Any] = self.datastore().saved.pop(image_id, {})
        return done
