"""A trained model as a folder: it comes back to the bit, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import Frozen, Lora, Placement
from mois.backbones import SAM2
from mois.files.json_records import sealed
from mois.inference.settings import InferenceSettings
from mois.intensities import Normalisation
from mois.interfaces import Adapter, Backbone, Propagation
from mois.propagation import Prototype, Similarity
from mois.sharing.bundle import Bundle, copy_bundle, write_bundle
from mois.sharing.bundle_record import ModelSpec, read_description
from mois.sharing.calibration import Calibration
from mois.sharing.card import write_card
from mois.sharing.identity import ModelIdentity
from mois.testing import example_patches

PLAIN = {
    "backbone": {"class_path": "mois.backbones.SAM2", "init_args": {"size": "nano", "weights": "random", "seed": 3}},
    "adapter": {"class_path": "adapters.Lora", "init_args": {"rank": 2, "placement": {"parts": ["decoder"]}}},
    "propagation": {"class_path": "mois.propagation.Similarity", "init_args": {"blocks": 1, "weights": "random"}},
}
SETTINGS = InferenceSettings(pixel_mm=2.0, peak_threshold=0.6)


def trained() -> tuple[Backbone, Adapter, Propagation]:
    """Return a model whose trained tensors are no longer what they were made as."""
    backbone, adapter = SAM2(weights="random", seed=3), Lora(rank=2, placement=Placement(["decoder"]))
    propagation = Similarity(blocks=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        propagation.build(backbone)
        adapter.attach(backbone, propagation)
        with torch.no_grad():
            for parameter in (*backbone.parameters(), *propagation.parameters()):
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone, adapter, propagation


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "bundle"
    calibration = Calibration.fit([0.4, 0.6, 0.9], [False, True, True])
    provenance = {"code": "1.2 git abc", "data": "fingerprint|1", "seed": 0}
    figures = {"right": 0.5, "wrong": float("nan")}
    return write_bundle(
        folder, ModelSpec.of(PLAIN), *trained(), SETTINGS,
        calibration=calibration, provenance=provenance, figures=figures,
    )  # fmt: skip


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """Return a copy to spoil."""
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Write a bundle.json that says something else, and whose digest is right."""
    file = folder / "bundle.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    edit(content)
    file.write_text(json.dumps(sealed(content)))


def test_a_bundle_answers_to_the_bit_like_the_model_that_was_trained(made: Path) -> None:
    backbone, _, propagation = trained()
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    bundle = Bundle.load(made)
    assert torch.equal(torch.rand(1), expected)  # loading leaves the random numbers of others alone

    images, masks = example_patches(3)
    answers = []
    with torch.no_grad():
        for one, other in ((backbone.eval(), propagation.eval()), (bundle.backbone, bundle.propagation)):
            exemplars = other.describe(one.encode(images), masks, one).reshape(1, 3)
            answers.append(other(one.encode(images[:1]), exemplars, one))
    assert torch.equal(answers[0].logits, answers[1].logits)
    assert torch.equal(answers[0].presence, answers[1].presence)
    assert bundle.identity.differences(ModelIdentity.of(backbone, propagation)) == []
    assert bundle.identity.arguments is not None
    assert bundle.identity.arguments["propagation"] == {"width": 48, "blocks": 1, "temperature": 0.1}


def test_a_bundle_says_what_it_is(made: Path) -> None:
    bundle = Bundle.load(str(made))
    assert bundle.segmenter().settings == replace(SETTINGS, normalisation=Normalisation("body"))  # auto is settled
    assert bundle.calibration == Calibration.fit([0.4, 0.6, 0.9], [False, True, True])
    assert bundle.figures == {"right": 0.5, "wrong": None}
    assert bundle.provenance["code"] == "1.2 git abc"
    modules = (*bundle.backbone.modules(), *bundle.propagation.modules())
    assert not any(module.training for module in modules)

    card = (made / "README.md").read_text(encoding="utf-8")
    for words in (
        "# Lora and Similarity on SAM2 nano",
        "--bundle bundle ",
        "| adapter | `adapters.Lora` | rank = 2, alpha = 16, dora = False, placement.parts = ['decoder'], "
        "placement.stages = [3, 4], ",
        "| right | 0.500 |",
        "| data | fingerprint/1 |",
        "fitted on 3 candidates of validation scans, of which 2 were lesions",
    ):
        assert words in card
    assert not [file for file in made.rglob("*") if file.suffix not in (".json", ".md", ".safetensors", "")]
    assert [file.name for file in made.parent.iterdir()] == ["bundle"]


def test_a_new_bundle_takes_the_place_of_an_old_one(folder: Path) -> None:
    (folder / "notes.txt").touch()
    (folder / "adapter" / "left.txt").touch()
    backbone, adapter, propagation = SAM2(weights="random", seed=3), Frozen(), Prototype()
    propagation.build(backbone)
    adapter.attach(backbone, propagation)
    plain = {
        **PLAIN,
        "adapter": {"class_path": "adapters.Frozen"},
        "propagation": {"class_path": "mois.propagation.Prototype"},
    }
    write_bundle(folder, ModelSpec.of(plain), backbone, adapter, propagation, SETTINGS)
    bundle = Bundle.load(folder)
    assert isinstance(bundle.propagation, Prototype)
    assert bundle.calibration is None
    assert (folder / "notes.txt").is_file()
    assert not (folder / "adapter" / "left.txt").exists()
    assert "No validation of these weights is recorded." in (folder / "README.md").read_text(encoding="utf-8")


def test_a_spec_of_something_else_is_refused(tmp_path: Path) -> None:
    spec = ModelSpec.of({**PLAIN, "adapter": {"class_path": "adapters.Full"}})
    with pytest.raises(ValueError, match=r"the adapter is a Lora, but its class_path is adapters.Full"):
        write_bundle(tmp_path / "bundle", spec, *trained(), SETTINGS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda f: (f / "bundle.json").unlink(), r"bundle=\S+: there is no bundle.json in it; give the folder"),
        (lambda f: (f / "bundle.json").write_text("{"), "bundle.json is cut short or no JSON"),
        (lambda f: change(f, lambda c: c.update(format=3)), "is of format 3, this version reads 1 and 2"),
        (lambda f: change(f, lambda c: c.pop("files")), "bundle.json: lacks files"),
        (lambda f: (f / "propagation.safetensors").unlink(), "lacks propagation.safetensors; copy the whole folder"),
        (lambda f: shutil.rmtree(f / "adapter"), "lacks adapter/adapter_config.json"),
        (
            lambda f: (f / "adapter" / "more.safetensors").touch(),
            "holds adapter/more.safetensors, which is not recorded",
        ),
        (
            lambda f: (f / "propagation.safetensors").write_bytes((f / "propagation.safetensors").read_bytes()[:-1]),
            "propagation.safetensors is damaged or was changed",
        ),
        (
            lambda f: change(f, lambda c: c["inference"].update(colour=1)),
            "bundle.json: holds inference.colour, which this version does not know",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["adapter"]["init_args"].update(rank=3)),
            r"adapter_model.safetensors is of another adapter \(\d+ of another shape: .* \(2, 64\) instead of",
        ),
        (
            lambda f: change(
                f, lambda c: c["model"]["adapter"]["init_args"]["placement"].update(stages=[4], parts=["trunk"])
            ),
            r"adapter_model.safetensors is of another adapter \(\d+ missing: .*; \d+ unknown: ",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["propagation"]["init_args"].update(blocks=2)),
            r"propagation.safetensors does not fit the model \(\d+ tensors\): 1\d missing: blocks.1.mix",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["propagation"]["init_args"].update(colour="red")),
            "mois.propagation.Similarity does not take its arguments: .*colour",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["backbone"]["init_args"].update(seed=4)),
            r"belongs to backbone nano \(random, sha256 \w+\), but the weights at hand are random \(sha256 \w+\)",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["backbone"]["init_args"].update(weights="/gone/sam2.pt")),
            r"backbone.weights=/gone/sam2.pt is no file.* Or say with backbone_weights where bundle=\S+ finds them",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["adapter"].update(class_path="mois.propagation.Similarity")),
            "names mois.propagation.Similarity for its adapter, which is no Adapter",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["adapter"].update(class_path="adapters.NoSuch")),
            "needs adapters.NoSuch for its adapter, which cannot be imported",
        ),
    ],
)
def test_a_bundle_that_is_not_whole_or_not_of_this_model_is_refused(
    folder: Path, edit: Callable[[Path], object], message: str
) -> None:
    edit(folder)
    with pytest.raises(ValueError, match=message):
        Bundle.load(folder)


def test_a_description_that_was_edited_by_hand_is_refused(folder: Path) -> None:
    file = folder / "bundle.json"
    written = file.read_text(encoding="utf-8")
    for old, new in (
        ('"temperature": 0.1', '"temperature": 1e300'),
        ('"right": 0.5', '"right": 0.75'),
        ('"precision": "auto"', '"precision": "32"'),
        ('"alpha": 16', '"alpha": 8'),
    ):
        assert old in written
        file.write_text(written.replace(old, new))
        with pytest.raises(ValueError, match=r"bundle.json was changed after it was written \(its sha256 is"):
            Bundle.load(folder)
    file.write_text(written.replace('"temperature": 0.1', '"temperature": NaN'))
    with pytest.raises(ValueError, match=r"bundle.json is cut short or no JSON \(NaN is no number\)"):
        Bundle.load(folder)


def test_a_setting_that_is_missing_does_not_take_its_default(folder: Path) -> None:
    change(folder, lambda content: content.update(inference={}))
    with pytest.raises(ValueError, match=r"bundle.json lacks inference.pixel_mm"):
        Bundle.load(folder)


@pytest.mark.parametrize(
    "damage", [{"format": 1}, {"format": True}, {"format": 1.0}, {"sha256": None}, {"format": "2"}]
)
def test_a_damaged_description_does_not_pass_as_one_of_before(folder: Path, damage: dict[str, Any]) -> None:
    file = folder / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **damage}))
    with pytest.raises(ValueError, match=r"bundle.json (holds sha256, which format 1|is of format|was changed)"):
        Bundle.load(folder)


FOREIGN = """
from pathlib import Path
Path({seen!r}).touch()
from adapters import Lora

class Theirs(Lora):
    '''Somebody else's.'''
"""


@pytest.mark.parametrize("class_path", ["theirs_of_bundle.Theirs", "mois_evil.Theirs", "os.system"])
def test_a_class_of_others_is_not_even_imported_unless_its_module_is_trusted(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, class_path: str
) -> None:
    seen, module = tmp_path / "imported", class_path.partition(".")[0]
    if module != "os":
        (tmp_path / f"{module}.py").write_text(FOREIGN.format(seen=str(seen)))
    monkeypatch.syspath_prepend(tmp_path)
    change(folder, lambda content: content["model"]["adapter"].update(class_path=class_path))
    with pytest.raises(
        ValueError, match=rf"names {class_path} for its adapter, .* its module: --trust {module}, or trust="
    ):
        Bundle.load(folder, trust=["another"])
    nested = {"class_path": class_path, "init_args": {}}
    change(folder, lambda content: content["model"]["adapter"].update(class_path="adapters.Lora"))
    change(folder, lambda content: content["model"]["adapter"]["init_args"].update(rank=[nested]))
    with pytest.raises(ValueError, match=f"names {class_path} for its adapter"):
        Bundle.load(folder)
    assert not seen.exists()
    assert module == "os" or module not in sys.modules


def test_a_trusted_class_is_loaded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab_of_bundle.py").write_text(FOREIGN.format(seen=str(tmp_path / "imported")))
    monkeypatch.syspath_prepend(tmp_path)
    change(folder, lambda content: content["model"]["adapter"].update(class_path="lab_of_bundle.Theirs"))
    bundle = Bundle.load(folder, trust=["lab_of_bundle"])
    assert (tmp_path / "imported").exists()
    assert bundle.identity == Bundle.load(folder, trust=["lab_of_bundle"]).identity
    change(folder, lambda content: content["model"]["adapter"].update(class_path="lab_elsewhere.Theirs"))
    with pytest.raises(ValueError, match="put the folder that holds lab_elsewhere on PYTHONPATH"):
        Bundle.load(folder, trust=["lab_elsewhere"])


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"right": 0.2, "wrong": 0.1, "no_exemplars": 0.3}, ["The exemplars do harm here: ", "0.200, without any"]),
        ({"right": 0.3, "wrong": None, "no_exemplars": 0.2}, ["wrong: not measured, there is one lesion class"]),
        ({"right": 0.3, "wrong": 0.1, "no_exemplars": 0.2}, []),
        ({"right": 0.2, "wrong": None, "no_exemplars": 0.2}, ["wrong: not measured"]),
    ],
)
def test_the_card_says_what_its_figures_mean(made: Path, tmp_path: Path, figures: Any, words: list[str]) -> None:
    content = {**json.loads((made / "bundle.json").read_text(encoding="utf-8")), "figures": figures}
    write_card(tmp_path / "README.md", "bundle", content)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert all(part in card for part in words)
    assert ("do harm" in card) == (figures["right"] < figures["no_exemplars"])
    assert ("not measured" in card) == (figures["wrong"] is None)
    assert "--trust" not in card


def test_the_card_says_whom_to_trust(made: Path, tmp_path: Path) -> None:
    content = json.loads((made / "bundle.json").read_text(encoding="utf-8"))
    write_card(tmp_path / "README.md", "bundle", content, ["my_lab.parts"])
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.count(" --trust my_lab.parts\n") == 2
    assert ", trust=['my_lab.parts']).segmenter()" in card
    assert "PYTHONPATH" in card


def test_a_backbone_lies_where_this_machine_says(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"backbone.weights=\S+/none.pt is no file"):
        Bundle.load(folder, backbone_weights=tmp_path / "none.pt")
    change(folder, lambda content: content["model"]["backbone"]["init_args"].update(weights="/gone/sam2.pt"))
    assert Bundle.load(folder, backbone_weights="random").backbone.identity.source == "random"


def test_a_folder_of_something_else_is_not_replaced(made: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="holds files, but no bundle; choose another folder"):
        copy_bundle(made, tmp_path)
    with pytest.raises(ValueError, match="holds files, but no bundle; choose another folder"):
        write_bundle(tmp_path, ModelSpec.of(PLAIN), *trained(), SETTINGS)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name", [".DS_Store", "._adapter_model.safetensors", "Thumbs.db"])
def test_what_a_desktop_leaves_in_a_folder_does_no_harm(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "adapter" / name).write_bytes(b"x")
    copy_bundle(folder, tmp_path / "copy")
    assert not (tmp_path / "copy" / "adapter" / name).exists()


def test_a_bundle_in_a_cache_of_the_hub_is_read_and_copied_as_files(folder: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--me--it" / "blobs", tmp_path / "models--me--it" / "snapshots" / "0a1b"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, blobs / str(number))
        link.symlink_to(os.path.relpath(blobs / str(number), link.parent))
    assert Bundle.load(snapshot).identity == Bundle.load(folder).identity
    copy_bundle(snapshot, tmp_path / "copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    Bundle.load(tmp_path / "copy")


@pytest.mark.parametrize("name", ["README.md", "bundle.json", "propagation.safetensors", "adapter/adapter_config.json"])
def test_a_link_that_leads_out_of_a_bundle_is_not_copied(folder: Path, tmp_path: Path, name: str) -> None:
    away = tmp_path / "blobs" / "0"
    away.parent.mkdir()
    (folder / name).rename(away)
    (folder / name).symlink_to(away)
    with pytest.raises(ValueError, match=rf"{name} is no regular file of its folder; copy the folder with"):
        copy_bundle(folder, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_bundle_that_nobody_may_write_to_is_read_and_left_as_it_was(folder: Path, tmp_path: Path) -> None:
    every = [folder, *folder.rglob("*")]
    for path in every:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.stat().st_mtime_ns for path in every}
    try:
        Bundle.load(folder)
        copy_bundle(folder, tmp_path / "copy")
        assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before
    finally:
        for path in every:
            path.chmod(0o755 if path.is_dir() else 0o644)
    assert all(path.stat().st_mode & 0o200 for path in (tmp_path / "copy").rglob("*"))


def test_the_folder_of_a_training_leads_to_its_bundle(tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ValueError, match="give the folder `bundle` of a training"):
        read_description(tmp_path)
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(ValueError, match=f"give {tmp_path / 'bundle'}"):
        read_description(tmp_path)
