"""A bundle as a checkpoint of SAM 2.1: other programs answer clicks as ours does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sam2.build_sam import build_sam2
from torch.nn import functional
from transformers import Sam2Model, Sam2Processor, Sam2VideoModel, Sam2VideoProcessor

from adapters import Bottleneck, Lora
from mois.backbones import SAM2
from mois.backbones.checkpoint_export import write_transformers
from mois.cli import main
from mois.inference.settings import InferenceSettings
from mois.interfaces import Adapter
from mois.propagation import Sam2Only
from mois.records import Prompts
from mois.sharing.bundle import Bundle, ModelSpec, write_bundle
from tests.support.meta_sam2 import CONFIGS, bodies, meta_image_predictor, meta_model, save_checkpoint

PX = 64
CLICKS = 50


def adapted(folder: Path, size: str, adapter: Adapter, **backbone: object) -> Path:
    """Write a bundle whose adapter was moved away from its start, as a training does."""
    given = {"size": size, "patch_px": PX, **backbone}
    made = SAM2(**given)  # type: ignore[arg-type]
    propagation = Sam2Only()
    propagation.build(made)
    torch.manual_seed(1)
    adapter.attach(made, propagation)
    with torch.no_grad():
        for tensor in made.parameters():
            if tensor.requires_grad:
                tensor.add_(0.02 * torch.randn_like(tensor))
    spec = ModelSpec.of(
        {
            "backbone": {"class_path": "mois.backbones.SAM2", "init_args": given},
            "adapter": {"class_path": f"adapters.{type(adapter).__name__}"},
            "propagation": {"class_path": "mois.propagation.Sam2Only"},
        }
    )
    return write_bundle(folder / "bundle", spec, made, adapter, propagation, InferenceSettings())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of tiny with LoRA, on weights of which none is trivial."""
    folder = tmp_path_factory.mktemp("tiny")
    weights = save_checkpoint(meta_model("tiny", PX), folder / "meta.pt")
    return adapted(folder, "tiny", Lora(), weights=str(weights))


@pytest.mark.ci
@torch.no_grad()
def test_metas_image_predictor_answers_clicks_as_the_bundle_does(bundle: Path, tmp_path: Path) -> None:
    main(["export", "sam2", "--bundle", str(bundle), "--out", str(tmp_path / "adapted.pt")])
    extra = [f"++model.image_size={PX}"]
    theirs = build_sam2(CONFIGS["tiny"], str(tmp_path / "adapted.pt"), device="cpu", hydra_overrides_extra=extra)
    ours, plain = Bundle.load(bundle, "cpu").backbone, SAM2("tiny", str(bundle.parent / "meta.pt"), patch_px=PX)
    images = bodies(5, PX)
    predictors = [meta_image_predictor(theirs, image) for image in images]
    seen = [(model, [model.encode(image[None]) for image in images]) for model in (ours, plain)]
    points = PX * (0.15 + 0.7 * torch.rand(CLICKS, 2, generator=torch.Generator().manual_seed(0)))
    labels = torch.ones(1, 1, dtype=torch.int32)
    overlaps: list[float] = []
    base: list[float] = []
    for number, point in enumerate(points):
        masks, quality, _ = predictors[number % 5].predict(
            point[None].numpy(), labels[0].numpy(), multimask_output=True
        )
        wanted = torch.from_numpy(masks[int(quality.argmax())]) > 0
        for (model, features), found in zip(seen, (overlaps, base), strict=True):
            answer = model.decode(features[number % 5], Prompts(point[None, None], labels))
            mask = functional.interpolate(answer.logits[None], (PX, PX), mode="bilinear")[0, 0] > 0
            found.append(float((mask & wanted).sum() / (mask | wanted).sum().clamp(min=1)) if wanted.any() else 1.0)
    assert min(overlaps) >= 0.99
    assert sum(base) / CLICKS < 0.9  # the adapter does something


def test_a_checkpoint_of_transformers_goes_in_out_and_in_again(bundle: Path, tmp_path: Path) -> None:
    first = SAM2("tiny", str(bundle.parent / "meta.pt"), patch_px=PX)
    for name, model in (("one", first), ("two", None)):
        source = model or SAM2("tiny", str(tmp_path / "one"), patch_px=PX)
        write_transformers(source.weights(), "tiny", PX, tmp_path / name)
    again = SAM2("tiny", str(tmp_path / "two"), patch_px=PX).weights()
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.weights().items())
    theirs = [Sam2VideoModel.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two")]
    assert all(torch.equal(tensor, theirs[1][name]) for name, tensor in theirs[0].items())


@pytest.mark.ci
def test_a_bundle_goes_to_transformers(bundle: Path, tmp_path: Path) -> None:
    main(["export", "sam2", "--bundle", str(bundle), "--out", str(tmp_path / "hf"), "--layout", "transformers"])
    exported = SAM2("tiny", str(tmp_path / "hf"), patch_px=PX).weights()
    made = Bundle.load(bundle, "cpu")
    made.adapter.merge()
    assert all(torch.equal(tensor, exported[name]) for name, tensor in made.backbone.weights().items())


@pytest.mark.ci
@torch.no_grad()
def test_the_processor_and_model_of_transformers_answer_clicks_as_the_bundle_does(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    out = tmp_path / "hf"
    main(["export", "sam2", "--bundle", str(bundle), "--out", str(out), "--layout", "transformers"])
    processor, model = Sam2Processor.from_pretrained(out), Sam2Model.from_pretrained(out).eval()
    assert Sam2VideoProcessor.from_pretrained(out).video_processor.size == {"height": PX, "width": PX}
    made = Bundle.load(bundle, "cpu")
    image = (255 * bodies(1, PX)[0]).round()  # (PX, PX), in bytes
    features = made.backbone.encode(image[None] / 255)
    picture = image.to(torch.uint8)[..., None].expand(-1, -1, 3).numpy()
    overlaps = []
    for point in PX * (0.15 + 0.7 * torch.rand(20, 2, generator=torch.Generator().manual_seed(0))):
        given = processor(picture, input_points=[[[point.tolist()]]], input_labels=[[[1]]], return_tensors="pt")
        assert given["pixel_values"].shape[-2:] == (PX, PX)
        theirs = model(**given, multimask_output=True)
        best = int(theirs.iou_scores[0, 0].argmax())
        (masks,) = processor.post_process_masks(theirs.pred_masks, given["original_sizes"])
        wanted = masks[0, best] > 0
        answer = made.backbone.decode(features, Prompts(point[None, None], torch.ones(1, 1, dtype=torch.int32)))
        mask = functional.interpolate(answer.logits[None], (PX, PX), mode="bilinear")[0, 0] > 0
        overlaps.append(float((mask & wanted).sum() / (mask | wanted).sum().clamp(min=1)) if wanted.any() else 1.0)
    assert min(overlaps) >= 0.99


def failing(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit):
        main(["export", "sam2", *words])
    return capsys.readouterr().err


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nano = adapted(tmp_path / "one", "nano", Lora(), weights="random")
    said = failing(capsys, "--bundle", str(nano), "--out", str(tmp_path / "x"), "--layout", "transformers")
    assert "transformers has no SAM 2.1 of size nano" in said
    assert not (tmp_path / "x").exists()
    said = failing(capsys, "--bundle", str(nano), "--out", str(tmp_path / "x.onnx"))
    assert "x.onnx is written as .pt or .safetensors; choose a name with one of these endings" in said
    main(["export", "sam2", "--bundle", str(nano), "--out", str(tmp_path / "x.safetensors")])
    assert SAM2("nano", str(tmp_path / "x.safetensors")).identity.name == "nano"
    bottleneck = adapted(tmp_path / "two", "nano", Bottleneck(), weights="random")
    said = failing(capsys, "--bundle", str(bottleneck), "--out", str(tmp_path / "y.pt"))
    assert said.startswith("error: model.adapter: adapters.Bottleneck cannot be merged into the backbone's weights.")
    assert "exists; name another one" in failing(
        capsys, "--bundle", str(nano), "--out", str(tmp_path / "x.safetensors")
    )
