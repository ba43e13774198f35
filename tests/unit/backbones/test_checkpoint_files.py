"""What is given as weights is told by what it holds: loaded, or called what it is in one line with the cure."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor, nn

from adapters import Frozen, Full, Lora
from mois.backbones import SAM2
from mois.backbones.checkpoint_files import read_tensor_file
from mois.backbones.weights import HUB_FILES
from mois.propagation import Similarity
from mois.propagation.weights import save_propagation
from mois.testing import example_patches, nano_backbone
from mois.training.checkpoints.checkpoint_io import read_checkpoint

State = dict[str, Tensor]
BLOCKS = {"tiny": (96, 12), "small": (96, 16), "base_plus": (112, 24), "large": (144, 48)}


@pytest.fixture(scope="module")
def nano() -> SAM2:
    return nano_backbone(seed=1)


@pytest.fixture(scope="module")
def state(nano: SAM2) -> State:
    return nano.weights()


def same(loaded: SAM2, source: SAM2) -> bool:
    images, _ = example_patches(1)
    return torch.equal(loaded.encode(images).levels[-1], source.encode(images).levels[-1])


def refused(path: Path, size: str = "nano") -> str:
    """Return what is said of a file that is no backbone; it begins with the key and the path."""
    with pytest.raises(ValueError, match=re.escape(f"backbone.weights={path}")) as error:
        SAM2(size, str(path), patch_px=64)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)
    return str(error.value).removeprefix(f"backbone.weights={path}").lstrip(": ")


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda state: state, id="bare"),
        pytest.param(lambda state: {"model": state, "epoch": 3, "optimizer": {"state": {}}}, id="model"),
        pytest.param(lambda state: {"state_dict": state}, id="state_dict"),
        pytest.param(lambda state: {"model": {f"module.{name}": t for name, t in state.items()}}, id="module."),
        pytest.param(lambda state: {f"model.{name}": t for name, t in state.items()}, id="model."),
        pytest.param(lambda state: {f"sam.{name}": t for name, t in state.items()}, id="sam."),
        pytest.param(lambda state: {f"module._orig_mod.{name}": t for name, t in state.items()}, id="compiled"),
        pytest.param(
            lambda state: {n.replace("image_encoder.", "image_encoder._orig_mod."): t for n, t in state.items()},
            id="a compiled part",
        ),
        pytest.param(
            lambda state: {"pytorch-lightning_version": "2.5", "state_dict": {f"net.{n}": t for n, t in state.items()}},
            id="another project's Lightning module",
        ),
    ],
)
def test_what_training_programs_put_around_tensors_is_taken_off(
    tmp_path: Path, nano: SAM2, state: State, wrap: Callable[[State], object]
) -> None:
    torch.save(wrap(state), tmp_path / "wrapped.pth")
    assert same(SAM2("nano", str(tmp_path / "wrapped.pth")), nano)


def test_the_content_decides_and_not_the_suffix(tmp_path: Path, nano: SAM2, state: State) -> None:
    save_file(state, tmp_path / "tensors.pt")
    torch.save(state, tmp_path / "pickle.safetensors")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("tensors.pt", "pickle.safetensors", "old.bin"):
        assert same(SAM2("nano", str(tmp_path / name)), nano)


def test_a_folder_with_one_checkpoint_is_that_checkpoint(tmp_path: Path, nano: SAM2, state: State) -> None:
    assert refused(tmp_path) == "is a folder that holds 0 checkpoints; give a file."
    torch.save(state, tmp_path / "a.pt")
    assert same(SAM2("nano", str(tmp_path)), nano)
    torch.save(state, tmp_path / "b.pt")
    assert refused(tmp_path) == "is a folder that holds 2 checkpoints; give one of a.pt, b.pt."


PAGE = b"\n<!DOCTYPE html><html><title>Sign in</title></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 155977658\n"


def archive(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in files.items():
            file.writestr(name.replace("_", "."), data)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as file:
        file.addfile(tarfile.TarInfo("weights.pt"))
    return content.getvalue()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is an empty file; download or copy it again."),
        (PAGE, "is a web page instead of the file; download or copy it again (the address of the file itself, not of"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page instead of the file; "),
        (POINTER, "is a git-lfs pointer instead of the file of 156 MB; fetch that with `git lfs pull`."),
        (b'{"error": "Repository not found"}', "is a JSON file; give a .pt or .safetensors file of SAM 2.1."),
        (b'{"metadata": {}, "weight_map": {"a": "b"}}', "is the index of a checkpoint in several files; give a "),
        (b"404: Not Found", "is a text file; give a .pt or .safetensors file of SAM 2.1."),
        (bytes(4096), "begins with 1024 zeros, so that its copy was cut short; download or copy it again."),
        (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file (Keras?); give a"),
        (b"GGUF\3\0\0\0\0", "is a GGUF file; give a"),
        (
            gzip.compress(b"tensors", mtime=0),
            "is a gzip archive; unpack it, and give a .pt or .safetensors file of SAM 2.1.",
        ),
        (tarred(), "is a tar archive; unpack it, and give a"),
        (archive(weights_pt=b"1"), "is a zip archive (of weights.pt) and no checkpoint; give a"),
        (archive(code_py=b"1", constants_pkl=b"2"), "is a TorchScript program; give a"),
        (b"\x93NUMPY\1\0v\0" + b"\xff" * 90, "is a NumPy array; give a"),
        (b"\x80\x02}q\x00", "is cut short (5 bytes); download or copy it again."),
        (save({"a": torch.zeros(3)})[:50], "is cut short (50 bytes); download or copy it again."),
        (pickle.dumps({"a": np.zeros(3)}), "is damaged or no checkpoint (UnpicklingError); download"),
        (save({"a": torch.zeros(3)})[:-4], "is cut short (72 of 76 bytes); download or copy it again."),
        (save({"a": torch.zeros(3)}).replace(b"F32", b"F99"), "is a damaged .safetensors file ("),
        (save({"a": torch.zeros(3)}) + b"more", "is a damaged .safetensors file ("),
        ((2).to_bytes(8, "little") + b"{}", "holds no tensors, as an adapter that trains nothing leaves it; give the"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_checkpoint_is_called_what_it_is(
    tmp_path: Path, content: bytes, said: str, suffix: str
) -> None:
    file = tmp_path / f"weights{suffix}"
    file.write_bytes(content)
    assert refused(file).startswith(said)


def test_a_checkpoint_that_was_cut_or_damaged_is_found(tmp_path: Path, state: State) -> None:
    torch.save(state, tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for kept in (4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "cut.pt").write_bytes(content[:kept])
        assert refused(tmp_path / "cut.pt") == f"is cut short ({kept} bytes); download or copy it again."
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    (tmp_path / "flipped.pt").write_bytes(flipped)
    assert re.match(r"is damaged \(the check sum of .* is wrong\); download", refused(tmp_path / "flipped.pt"))


@pytest.mark.parametrize("kept", [*range(2, 440, 7), 450, 500, 540])
def test_a_checkpoint_of_an_old_torch_is_cut_short_wherever_it_ends(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "old.pt"
    torch.save({"model": {"a": torch.ones(3, 3), "b": torch.ones(3, 3)}}, file, _use_new_zipfile_serialization=False)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"^weights is cut short \({kept} bytes\); download or copy it again\.$"):
        read_tensor_file(file, "weights")
    with pytest.raises(ValueError, match=r"^ckpt_path=\S*old.pt: it is cut short; give another one$"):
        read_checkpoint(file)


def test_a_whole_checkpoint_of_an_old_torch_is_not_cut_short(tmp_path: Path) -> None:
    file = tmp_path / "old.pt"
    torch.save({"a": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    assert read_tensor_file(file, "weights").tensors["a"].tolist() == [1, 1]
    with pytest.raises(ValueError, match="it is damaged or no checkpoint; give another one"):
        read_checkpoint(file)


class Shell:
    """What a hostile checkpoint would hold."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pickle_was_executed",)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param({"model": Shell()}, id="shell"),
        pytest.param({"model": nn.Linear(1, 1)}, id="a whole module"),
    ],
)
def test_a_pickle_that_names_code_is_refused_and_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "new.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(content))
    for name in ("new.pt", "old.pt", "plain.pkl"):
        said = refused(tmp_path / name)
        assert said.startswith(("is refused: it does not load as plain tensors (weights_only=True)", "is damaged or"))
        assert name == "plain.pkl" or "system" in said or "Linear" in said
    assert not Path("pickle_was_executed").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"mois": {}, "state_dict": {}, "global_step": 40}, "is the checkpoint of a training (step 40), which holds"),
        ({"epoch": 1, "optimizer": {}}, "holds no table of tensors by name (its keys are epoch, optimizer); give a"),
        ({"model": {"a": 1}}, "holds no table of tensors by name (its keys are model)"),
        ({1: torch.zeros(1)}, "holds no table of tensors by name (its keys are 1)"),
        ({}, "holds no table of tensors by name (its keys are none)"),
        ([torch.zeros(1)], "holds no table of tensors by name (it is a list)"),
        (torch.zeros(1), "holds no table of tensors by name (it is a Tensor)"),
        ({"a": torch.zeros(1), "b": torch.zeros(1)}, "holds no tensor of SAM 2.1 (2 others: a, b); give a checkpoint"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_described(tmp_path: Path, content: object, said: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    assert refused(tmp_path / "w.pt").startswith(said)


def trunk(size: str, *, old: bool = False) -> State:
    """Return as much of a checkpoint of a size as tells its size and version."""
    width, blocks = BLOCKS[size]
    names = ["no_obj_ptr", *([] if old else ["no_obj_embed_spatial", "obj_ptr_tpos_proj.weight"])]
    names += [f"image_encoder.trunk.blocks.{number}.norm1.weight" for number in range(blocks)]
    return {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(width, 3, 7, 7)} | dict.fromkeys(
        names, torch.zeros(1)
    )


@pytest.mark.parametrize("size", BLOCKS)
def test_another_size_and_sam_2_0_are_named(tmp_path: Path, size: str) -> None:
    torch.save({"model": trunk(size)}, tmp_path / "w.pt")
    assert refused(tmp_path / "w.pt") == (
        f"is of size {size}, the model is nano; set backbone.size={size} (model.backbone.init_args.size), or give the "
        "checkpoint of nano."
    )
    torch.save({"model": {f"module.{name}": one for name, one in trunk(size, old=True).items()}}, tmp_path / "w.pt")
    assert refused(tmp_path / "w.pt").startswith(
        f"is SAM 2.0 {size} (no_obj_embed_spatial and obj_ptr_tpos_proj.weight are missing), which works otherwise;"
    )


@pytest.mark.parametrize("prefix", ["", "module."])
def test_sam_1_is_named(tmp_path: Path, prefix: str) -> None:
    torch.save({f"{prefix}image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}, tmp_path / "sam_vit_b_01ec64.pth")
    assert refused(tmp_path / "sam_vit_b_01ec64.pth").startswith("is a checkpoint of SAM 1 (Segment Anything, not 2);")


def test_files_of_ours_that_go_elsewhere_are_named(tmp_path: Path, nano: SAM2) -> None:
    propagation = Similarity()
    propagation.build(nano)
    save_propagation(propagation, tmp_path / "p.safetensors", nano.identity)
    assert refused(tmp_path / "p.safetensors").startswith("is a propagation's file, which goes to model.propagation")
    adapted = nano_backbone()
    lora = Lora()
    lora.attach(adapted, propagation)
    lora.save(tmp_path / "adapter")
    assert refused(tmp_path / "adapter").startswith("is an adapter's folder, which holds only what was trained; give")
    assert refused(tmp_path / "adapter" / "adapter_model.safetensors").startswith("is an adapter's file, which holds")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}", encoding="utf-8")
    assert refused(tmp_path / "bundle").startswith("is a bundle; give it to --bundle (mois segment, mois evaluate)")
    save_file({"a": torch.zeros(1)}, tmp_path / "bank.safetensors", {"format": "mois exemplar bank"})
    assert refused(tmp_path / "bank.safetensors").startswith("is an exemplar bank (--bank); the backbone's own")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == "is a device or a pipe; give a regular file."


@pytest.mark.parametrize("weights", [None, ""])
def test_no_weights_are_not_taken_for_some(weights: str | None) -> None:
    with pytest.raises(
        ValueError, match=r"^backbone\.weights=(null|'') names nothing; bundled, bundled-2, random or a hub id"
    ):
        SAM2("nano", weights)  # type: ignore[arg-type]
    propagation = Similarity(weights=weights)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^propagation\.weights=(null|'') names nothing; give random, bundled, or a"):
        propagation.build(nano_backbone())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is an empty file; download or copy it again."),
        (POINTER, "is a git-lfs pointer instead of the file of 156 MB"),
        (pickle.dumps({"a": np.zeros(3)}), "is damaged or no checkpoint (UnpicklingError); download"),
        (save({"a": torch.zeros(3)})[:-4], "is cut short (72 of 76 bytes)"),
        (save({"a": torch.zeros(3)}), "does not say which backbone it was trained with; give the"),
    ],
)  # fmt: skip
def test_the_files_of_a_propagation_are_told_in_the_same_way(
    tmp_path: Path, nano: SAM2, content: bytes, said: str
) -> None:
    file = tmp_path / "p.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"propagation.weights={file} {said}")):
        Similarity(weights=str(file)).build(nano)


def test_a_propagation_with_nan_is_refused(tmp_path: Path, nano: SAM2) -> None:
    source = Similarity()
    source.build(nano)
    with torch.no_grad():
        next(iter(source.parameters())).fill_(float("nan"))
    save_propagation(source, tmp_path / "p.safetensors", nano.identity)
    with pytest.raises(
        ValueError, match=r"propagation\.weights=.*: \d+ of \d+ numbers in tensor .* are NaN or infinite"
    ):
        Similarity(weights=str(tmp_path / "p.safetensors")).build(nano)


@pytest.mark.parametrize("adapter", [Lora, Full, Frozen])
@pytest.mark.parametrize(("content", "said"), [(b"", "is an empty file"), (PAGE, "is a web page instead of the file")])
def test_the_files_of_an_adapter_are_told_in_the_same_way(
    tmp_path: Path, adapter: type[Lora | Full | Frozen], content: bytes, said: str
) -> None:
    backbone, propagation = nano_backbone(), Similarity()
    propagation.build(backbone)
    made = adapter()
    made.attach(backbone, propagation)
    made.save(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{file} {said}")):
        made.load(tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.mark.parametrize("hub_id", [*HUB_FILES, "facebook/sam2.1-hiera-tiny-hf"])
def test_a_hub_id_without_a_network_says_which_file_to_bring(no_network: None, hub_id: str) -> None:
    file = HUB_FILES.get(hub_id, "model.safetensors")
    with pytest.raises(ValueError, match=re.escape(f"backbone.weights={hub_id} cannot be downloaded (")) as error:
        SAM2("tiny", hub_id, patch_px=64)
    assert str(error.value).endswith(
        f"; download {file} from http://127.0.0.1:9/{hub_id} on a machine that can, and give its path."
    )


def test_a_hub_file_that_is_there_needs_no_network(
    no_network: None, monkeypatch: pytest.MonkeyPatch, nano: SAM2, state: State, tmp_path: Path
) -> None:
    monkeypatch.setitem(HUB_FILES, "facebook/nano", "nano.pt")
    torch.save({"model": state}, tmp_path / "nano.pt")

    def cached(repository: str, name: str, *, local_files_only: bool = False) -> str:
        assert local_files_only
        assert (repository, name) == ("facebook/nano", "nano.pt")
        return str(tmp_path / "nano.pt")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", cached)
    assert same(SAM2("nano", "facebook/nano"), nano)


def test_the_hub_ids_of_sam_2_0_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"weights=facebook/sam2-hiera-tiny is SAM 2\.0; take SAM 2\.1: facebook/sam2\.1"
    ):
        SAM2("tiny", "facebook/sam2-hiera-tiny", patch_px=64)


def test_a_description_beside_a_checkpoint_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam2_video"}), encoding="utf-8")
    assert refused(tmp_path / "config.json").startswith("is a JSON file; give a")
