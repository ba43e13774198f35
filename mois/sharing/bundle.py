"""The bundle: the result of a training in one folder, to be shared.

    bundle.json               classes with their arguments, inference settings, calibration, provenance, figures, and a
                              sha256 of each file and of itself (mois.sharing.bundle_record)
    adapter/                  trained weights of the backbone, as the adapter writes them (PEFT's adapters: PEFT format)
    propagation.safetensors   trained weights of the propagation
    README.md                 the same information for people

A bundle has no code and no pickles. Its classes are imported from this project only, or from modules that the user
trusts by name. The weights of the backbone are not in the bundle; their sha256 is.
"""

from __future__ import annotations

import importlib
import json
import math
import re
from argparse import ArgumentError
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from jsonargparse import ArgumentParser, Namespace
from safetensors.torch import load_file

from mois.backbones.weights import load_exactly
from mois.files.atomic import file_sha256, read_regular, whole_folder, write_bytes, write_text
from mois.inference.execution import chosen_device
from mois.inference.segmenter import VolumeSegmenter
from mois.inference.settings import InferenceSettings
from mois.interfaces import Adapter, Backbone, Propagation
from mois.machine.own_packages import refuse_foreign_packages
from mois.propagation.weights import save_propagation
from mois.sharing.bundle_files import ADAPTER, CARD, PROPAGATION, check_files, check_place, files_of, refuse_foreign
from mois.sharing.bundle_record import DESCRIPTION, FORMAT_VERSION, BundleRecord, ClassSpec, ModelSpec, read_description
from mois.sharing.calibration import Calibration
from mois.sharing.card import write_card
from mois.sharing.identity import ModelIdentity
from mois.sharing.lesion_model import LesionModel
from mois.sharing.old_settings import PLACEMENT

__all__ = [
    "Bundle",
    "ClassSpec",
    "ModelSpec",
    "check_files",
    "copy_bundle",
    "load_weights",
    "with_defaults",
    "write_bundle",
]

OURS = ("mois", "adapters")

Made = TypeVar("Made")


def write_bundle(
    folder: Path,
    spec: ModelSpec,
    backbone: Backbone,
    adapter: Adapter,
    propagation: Propagation,
    inference: InferenceSettings,
    *,
    calibration: Calibration | None = None,
    provenance: Mapping[str, Any] | None = None,
    figures: Mapping[str, float] | None = None,
) -> Path:
    """Write a trained model as a bundle. An older bundle is replaced once the new bundle is whole.

    Other files in the folder, such as notes, are kept.

    Args:
        folder: Folder of the bundle.
        spec: Classes and arguments of the three parts.
        backbone: Backbone with its adapter attached.
        adapter: The adapter, which writes the trained weights of the backbone.
        propagation: The trained propagation.
        inference: Inference settings for whole volumes.
        calibration: Calibration of the confidence of found lesions; None if there was nothing to fit it on.
        provenance: Code, data, weights and settings that made the model.
        figures: Figures of the best validation, by name.

    Returns:
        The folder.

    Raises:
        ValueError: If the spec names other classes than these parts, or the folder holds files but no bundle.
    """
    for name, made in (("backbone", backbone), ("adapter", adapter), ("propagation", propagation)):
        class_path = getattr(spec, name).class_path
        if class_path.rpartition(".")[2] != type(made).__name__:
            raise ValueError(f"bundle: the {name} is a {type(made).__name__}, but its class_path is {class_path}.")
    folder = Path(folder)
    refuse_foreign(folder)
    spec = with_defaults(spec)
    with whole_folder(folder, (DESCRIPTION, ADAPTER, PROPAGATION, CARD)) as part:
        adapter.save(part / ADAPTER)
        save_propagation(propagation, part / PROPAGATION, backbone.identity)
        content = BundleRecord(
            FORMAT_VERSION,
            spec,
            ModelIdentity.of(backbone, propagation, spec.arguments()),
            inference.settled(),
            calibration,
            {name: value if math.isfinite(value) else None for name, value in (figures or {}).items()},
            dict(provenance or {}),
            {str(file.relative_to(part)): file_sha256(file) for file in files_of(part)},
        ).as_dict()
        write_text(part / DESCRIPTION, json.dumps(content, indent=2, allow_nan=False) + "\n")
        foreign = {name.rpartition(".")[0] for name in _class_paths(asdict(spec)) if not _is_trusted(name, ())}
        write_card(part / CARD, folder.name, content, sorted(foreign))
    return folder


def copy_bundle(source: Path, target: Path) -> None:
    """Copy a bundle to another folder. An older bundle there is replaced once the copy is whole.

    Raises:
        ValueError: If the source is no bundle or holds anything but regular files; or if the target holds files but no
            bundle.
    """
    record = read_description(source)
    check_files(source, record.files)
    for name in (DESCRIPTION, CARD):  # they have no digest
        check_place(source, source / name)
    refuse_foreign(target)
    with whole_folder(target, (DESCRIPTION, ADAPTER, PROPAGATION, CARD)) as part:
        for name in (DESCRIPTION, *record.files, CARD):
            if (source / name).exists():
                write_bytes(part / name, read_regular(source / name))


@dataclass(frozen=True)
class Bundle:
    """A trained model, ready to use.

    Attributes:
        path: Folder of the bundle.
        backbone: Backbone with its adapter, in eval mode.
        propagation: Propagation in eval mode.
        inference: Inference settings for whole volumes.
        calibration: Calibration of the confidence of found lesions; None if there was nothing to fit it on.
        identity: Identity of the model. Exemplar banks and sessions belong to one identity.
        provenance: Code, data, weights and settings that made the model.
        figures: Figures of the best validation, by name; None for a figure that could not be measured.
        adapter: The adapter, attached to the backbone.
    """

    path: Path
    backbone: Backbone
    propagation: Propagation
    inference: InferenceSettings
    calibration: Calibration | None
    identity: ModelIdentity
    provenance: dict[str, Any]
    figures: dict[str, float | None]
    adapter: Adapter

    def segmenter(self) -> VolumeSegmenter:
        """Return the segmenter, which turns a volume and exemplars into lesions."""
        return VolumeSegmenter(self.backbone, self.propagation, self.inference)

    def model(self) -> LesionModel:
        """Return the model as `InteractiveSession` takes it: segmenter, calibration and identity."""
        return LesionModel(self.segmenter(), self.calibration, self.identity)

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        trust: Sequence[str] = (),
        backbone_weights: str | Path | None = None,
    ) -> Bundle:
        """Read a bundle and make its model.

        Args:
            path: Folder of the bundle.
            device: Device of the model. `auto` is an accelerator if there is one, else the CPU.
            trust: Modules or packages outside this project whose classes the bundle may name.
            backbone_weights: File of the backbone's weights, if it is not where it was in the training.

        Raises:
            ValueError: If the folder is no bundle, is damaged or of another format; if it names classes that are not
                trusted; or if the weights of the backbone or the tensors are not those of the bundle.
        """
        path = Path(path)
        device = chosen_device(str(device))
        content = read_description(path)
        check_files(path, content.files)
        spec, wanted = content.model, content.identity
        with torch.random.fork_rng(devices=[]):  # building draws random numbers; loading overwrites them
            backbone = _backbone(spec.backbone, trust, path, backbone_weights)
            if backbone.identity.sha256 != wanted.backbone.sha256:
                raise ValueError(
                    f"bundle={path} belongs to backbone {wanted.backbone.name} ({wanted.backbone.source}, sha256 "
                    f"{wanted.backbone.sha256[:12]}), but the weights at hand are {backbone.identity.source} (sha256 "
                    f"{backbone.identity.sha256[:12]}); give the right file with backbone_weights."
                )
            backbone.behave(wanted.behaviour)  # the recorded rules, not the defaults of this version
            adapter = _make(spec.adapter, Adapter, "adapter", trust, path)  # type: ignore[type-abstract]
            propagation = _make(_without_weights(spec.propagation), Propagation, "propagation", trust, path)  # type: ignore[type-abstract]
            propagation.build(backbone)
            adapter.attach(backbone, propagation)
        load_weights(path, f"bundle={path}", content, adapter, propagation)
        identity = ModelIdentity.of(backbone, propagation, spec.arguments())
        if different := identity.differences(wanted):
            raise ValueError(
                f"bundle={path} does not give the model that it was made from: {' and '.join(different)}; take the "
                f"versions of the packages that its {DESCRIPTION} names under provenance."
            )
        for module in (backbone, propagation):  # requires_grad stays: torch rounds differently without it
            module.to(device).eval()
        return cls(
            path,
            backbone,
            propagation,
            content.inference,
            content.calibration,
            identity,
            content.provenance,
            content.figures,
            adapter,
        )


def load_weights(path: Path, name: str, record: BundleRecord, adapter: Adapter, propagation: Propagation) -> None:
    """Load the weights of a bundle into a model: every tensor or none.

    Args:
        path: Folder of the bundle, already checked by `check_files`.
        name: What messages call the bundle.
        record: Content of its bundle.json.
        adapter: Adapter that is attached to a backbone with the same weights.
        propagation: Propagation that is built for this backbone.

    Raises:
        ValueError: If the weights do not fit the model.
    """
    try:
        adapter.load(path / ADAPTER)
    except RuntimeError as error:  # raised by torch for other shapes
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: its adapter does not fit {record.model.adapter.class_path}: {reason}") from error
    load_exactly(propagation, propagation.complete(load_file(path / PROPAGATION)), f"{name}: {PROPAGATION}")


def _backbone(spec: ClassSpec, trust: Sequence[str], path: Path, weights: str | Path | None) -> Backbone:
    init_args = dict(spec.init_args)
    if weights is not None:
        init_args["weights"] = str(weights)
    try:
        return _make(ClassSpec(spec.class_path, init_args), Backbone, "backbone", trust, path)  # type: ignore[type-abstract]
    except ValueError as error:
        if weights is None and "backbone.weights" in str(error):
            raise ValueError(f"{error} Or say with backbone_weights where bundle={path} finds them.") from error
        raise


def _without_weights(spec: ClassSpec) -> ClassSpec:
    """Return a spec that makes our propagation with random weights. All its weights come from the bundle."""
    ours = spec.class_path.startswith("mois.") and "weights" in spec.init_args
    return ClassSpec(spec.class_path, {**spec.init_args, "weights": "random"}) if ours else spec


def _make(spec: ClassSpec, base: type[Made], role: str, trust: Sequence[str], path: Path) -> Made:
    """Make an object of a class of this project or of a trusted module.

    Raises:
        ValueError: If the class is not trusted, does not exist, is no subclass of `base`, or refuses the arguments.
    """
    refuse_foreign_packages()
    check_trust(spec, role, trust, path)
    parser, parsed = _parsed(spec, base, role, path)
    for inner in {*_class_paths(parsed.as_dict())} - {*_class_paths(spec.init_args)}:  # short, or from a file
        raise ValueError(
            f"bundle={path} names {inner} for its {role} in a way that is not allowed; give another bundle."
        )
    made: Made = parser.instantiate(parsed)[role]
    return made


def check_trust(spec: ClassSpec, role: str, trust: Sequence[str], path: Path) -> None:
    """Refuse a class that is neither of this project nor of a trusted module, before anything is imported.

    Args:
        spec: The class, and its arguments, which may name classes.
        role: What it is in the model: backbone, adapter or propagation.
        trust: Trusted modules or packages.
        path: Folder of the bundle, for the message.

    Raises:
        ValueError: If it is not trusted.
    """
    for name in _class_paths(asdict(spec)):
        if not _is_trusted(name, trust):
            module = name.rpartition(".")[0]
            raise ValueError(
                f"bundle={path} names {name} for its {role}, which is no class of this project; only if you know who "
                f"wrote it, trust its module: --trust {module}, or trust=['{module}'] in Python."
            )


def with_defaults(spec: ModelSpec) -> ModelSpec:
    """Return a spec with every argument, with defaults written out."""
    parts = {}
    for role, base in (("backbone", Backbone), ("adapter", Adapter), ("propagation", Propagation)):
        part = getattr(spec, role)
        parser, parsed = _parsed(part, base, role, Path())
        plain = json.loads(parser.dump(parsed, format="json", skip_unset=False))
        parts[role] = replace(part, init_args=plain.get(role, {}))  # a class without arguments has no key
    return ModelSpec(**parts)


def _parsed(spec: ClassSpec, base: type, role: str, path: Path) -> tuple[ArgumentParser, Namespace]:
    """Import a class, and parse its arguments by its signature.

    Raises:
        ValueError: If the class does not exist, is no subclass of `base`, or refuses the arguments.
    """
    module, _, name = spec.class_path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"bundle={path} needs {spec.class_path} for its {role}, which cannot be imported ({error}); put the folder "
            f"that holds {module.partition('.')[0]} on PYTHONPATH, or install what it needs."
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ValueError(f"bundle={path} names {spec.class_path} for its {role}, which is no {base.__name__}.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, role)
    current = PLACEMENT.with_group(spec.init_args) if PLACEMENT.belongs_to(kind) else spec.init_args
    try:
        parsed = parser.parse_object({role: current})
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"bundle={path}: {spec.class_path} does not take its arguments: {reason}") from error
    return parser, parsed


def _is_trusted(class_path: str, trust: Sequence[str]) -> bool:
    """Return whether a class may be made. A configuration of peft is settings alone, which `adapters.Peft` checks."""
    settings_of_peft = re.fullmatch(r"peft\.\w+Config", class_path) is not None
    return settings_of_peft or any(class_path.startswith(f"{module}.") for module in (*OURS, *trust))


def _class_paths(plain: Any) -> Iterator[str]:
    """Yield every class_path in nested dicts and lists."""
    if isinstance(plain, Mapping):
        if isinstance(plain.get("class_path"), str):
            yield plain["class_path"]
        plain = list(plain.values())
    if isinstance(plain, list | tuple):
        for inner in plain:
            yield from _class_paths(inner)
