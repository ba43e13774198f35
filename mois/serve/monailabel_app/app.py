"""The app that MONAI Label loads: its tasks, its strategy, and what happens when a label is saved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.interfaces.tasks.strategy import Strategy

from mois.scans.image_files import write_volume
from mois.serve.monailabel_app import reader
from mois.serve.monailabel_app.lesion_names import FIRST_NAMES, default_name
from mois.serve.monailabel_app.reader import Answer, LabelPoints
from mois.serve.monailabel_app.studies import ENDINGS, OpenScan, Studies, checked_id

Task = Callable[[OpenScan, Mapping[str, Any]], Answer]
FIRST_LABELS = [default_name(number) for number in range(1, FIRST_NAMES + 1)]


class SessionTask(InferTask):
    """A task that does an action of a session, and answers with lesions as a NIfTI file."""

    def __init__(self, kind: InferType, labels: list[str], description: str, task: Task, studies: Studies) -> None:
        super().__init__(type=kind, labels=labels, dimension=3, description=description)
        self._task, self._studies = task, studies

    def is_valid(self) -> bool:
        """Return True: the model is there once the app is."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """Do the action.

        Args:
            request: Parameters of the client, and `image`, the id of the image.

        Returns:
            A new file of the lesions, which the server removes once it is sent, and facts about the lesions.
        """
        answer = self._studies.do(request["image"], lambda scan: self._task(scan, request))
        with tempfile.NamedTemporaryFile(suffix=".nii.gz", delete=False) as file:
            write_volume(answer.labels, answer.affine, Path(file.name))
        return file.name, answer.params


class ExpectedGain(Strategy):
    """Offers the image on which the reader's next action helps most; then images that were never opened."""

    def __init__(self, studies: Studies) -> None:
        super().__init__("The image on which your next click, acceptance or rejection is expected to help most")
        self._studies = studies

    def __call__(self, request: Mapping[str, Any], datastore: LocalDatastore) -> dict[str, Any] | None:
        """Return the id of the image; None if every image has a saved label."""
        images = sorted(datastore.get_unlabeled_images())
        if not images:
            return None
        gains = {image: self._studies.gain(image) for image in images}
        return {"id": max(images, key=lambda image: -1.0 if (gain := gains[image]) is None else gain)}


class StudiesDatastore(LocalDatastore):
    """The folder of scans. Names that lead out of the folder are refused."""

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Store an uploaded image."""
        self._refuse(image_id, self._datastore.image_path(), image_filename)
        return str(super().add_image(image_id, image_filename, image_info))

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """Store a label of an image."""
        checked_id(label_tag, "tag")
        self._refuse(image_id, self._datastore.label_path(label_tag), label_filename)
        return str(super().save_label(image_id, label_filename, label_tag, label_info))

    def _refuse(self, image_id: str, folder: str, file: str) -> None:
        """Refuse to write through a link, under a name with folders, or with an ending that is no scan's."""
        name = checked_id(image_id)
        ending = next((ending for ending in ENDINGS if file.endswith(ending)), None)
        if ending is None:
            raise ValueError(f"the file must end in one of {', '.join(ENDINGS)}.")
        home, target = Path(self._datastore_path).resolve(), Path(folder) / f"{name}{ending}"
        if target.is_symlink() or not target.resolve().is_relative_to(home):
            raise ValueError(f"image={image_id}: a link stands in its place, and is not followed; remove the link.")


class LesionApp(MONAILabelApp):
    """Click lesions, find the lesions like them, reject and accept them."""

    studies_of: ClassVar[dict[str, Studies]] = {}
    """The folders of scans that this process serves. `mois.serve.monailabel_app.server` fills it."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.lesions = self.studies_of[studies]
        super().__init__(
            app_dir,
            studies,
            dict(conf),
            name="mois",
            description="Click a few lesions, find all the others that look like them. No medical device.",
            labels=FIRST_LABELS,
        )

    def init_datastore(self) -> StudiesDatastore:
        """Return the folder of scans."""
        return StudiesDatastore(self.studies, extensions=[f"*{ending}" for ending in ENDINGS], auto_reload=True)

    def init_infers(self) -> dict[str, SessionTask]:
        """Return the tasks."""
        drawn = {
            "click": (
                InferType.DEEPGROW,
                [],
                "A lesion from clicks. Each label is a lesion; further clicks of the label correct it.",
                lambda scan, given: reader.click(
                    scan.session, scan.names, LabelPoints.read(given, scan.session), scan.grid
                ),
            ),
            "reject": (
                InferType.DEEPEDIT,
                ["lesion"],
                "The chosen label is no lesion: it is removed, becomes a negative exemplar, and all are found again.",
                lambda scan, given: reader.reject(scan.session, scan.names, given.get("label")),
            ),
            "propagate": (
                InferType.SEGMENTATION,
                [],
                "All lesions that look like those clicked.",
                lambda scan, _: reader.propagate(scan.session, scan.names),
            ),
            "lesions": (
                InferType.SEGMENTATION,
                FIRST_LABELS,
                "All lesions as they are. Nothing is changed.",
                lambda scan, _: reader.show(scan.session, scan.names),
            ),
        }
        return {name: SessionTask(*made, self.lesions) for name, made in drawn.items()}

    def init_strategies(self) -> dict[str, Strategy]:
        """Return the order in which images are offered."""
        return {"expected_gain": ExpectedGain(self.lesions)}

    def infer(self, request: Mapping[str, Any], datastore: object = None) -> dict[str, Any]:
        """Run a task. The image is one of the folder: a client cannot name a file.

        Raises:
            ValueError: If there is no such task or image, or the task refuses the request.
        """
        name = request.get("model")
        if name not in self._infers:
            raise ValueError(f"model={str(name)[:40]!a}: there is no such task; choose {', '.join(self._infers)}.")
        image = checked_id(request.get("image"))
        file, params = self._infers[name]({**request, "image": image})
        return {"label": file, "tag": DefaultLabelTag.ORIGINAL, "file": file, "params": params}

    def on_save_label(self, image_id: str, label_id: str) -> dict[str, Any]:
        """Accept the lesions of a label that is saved as final, and write the results of the session."""
        info = self.datastore().get_label_info(label_id, DefaultLabelTag.FINAL)
        file = self.datastore().get_label_uri(label_id, DefaultLabelTag.FINAL)
        if not file:
            return {}
        given = {each["idx"]: each["name"] for each in info.get("label_info", [])} or None

        def accepted(scan: OpenScan) -> reader.Accepted:
            labels = self.lesions.read_label(scan, Path(file))
            done = reader.accept(scan.session, scan.names, labels, given)
            scan.session.save()
            return done

        return vars(self.lesions.do(image_id, accepted))
