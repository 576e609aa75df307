"""The callback in a real test stage: known maps, the right cases, and a model left as it was."""

import copy
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from mmpds.callbacks.gradcam import GradCam
from mmpds.callbacks.heat_maps import METHODS, heat_maps, overlay
from mmpds.callbacks.predictions import Predictions
from mmpds.data.module import ImageData
from mmpds.metrics.localization import overlap
from mmpds.metrics.thresholds import Threshold
from mmpds.models.densenet import DenseNet121

SIZE = 32
FINDINGS = ("Bright", "Dark")
SPOT = 8  # pixels a side of the bright square


class Spots:
    """Even images say nothing; odd ones have a bright square, `Bright`, boxed exactly."""

    findings = FINDINGS

    def __init__(self, images=40):
        odd = np.arange(images) % 2 == 1
        self.corner = np.random.default_rng(0).integers(0, SIZE - SPOT, (images, 2))
        self.table = pd.DataFrame({
            "id": [f"={i}" for i in range(images)], "group": [f"g{i // 2}" for i in range(images)], "normal": ~odd,
            "Bright": odd.astype(float), "Dark": np.where(odd, np.nan, 1.0),
        })  # fmt: skip
        rows = [
            (self.table["id"][i], "Bright", *self.corner[i] / SIZE, *[SPOT / SIZE] * 2) for i in np.flatnonzero(odd)
        ]
        wrong = (self.table["id"][0], "Bright", 0, 0, 1, 1)  # boxed, but not labelled so: not to be scored
        self.boxes = pd.DataFrame([*rows, wrong], columns=["id", "finding", "x", "y", "w", "h"])

    def image(self, row, size):
        pixels = np.full((size, size), 40, np.uint8)
        if row % 2:
            x, y = self.corner[row]
            pixels[y : y + SPOT, x : x + SPOT] = 240
        return pixels

    def digest(self, row):
        return str(row)


class SpotDetector(pl.LightningModule):
    """Says `Bright` where a pixel is bright and `Dark` never; its maps are known: the bright pixels, and nothing."""

    findings = FINDINGS

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.features[0].weight.copy_(torch.tensor([1.0, 0.0]).view(2, 1, 1, 1))
            self.features[0].bias.copy_(torch.tensor([-0.5, 0.0]))
            self.head.weight.copy_(torch.tensor([[200.0, 0.0], [0.0, 0.0]]))
            self.head.bias.copy_(torch.tensor([-2.0, -3.0]))
        self.threshold = Threshold(FINDINGS, rule="fixed")

    @property
    def cam_layers(self):
        return (self.features,)

    def forward(self, image):
        return self.head(self.features(image).mean((2, 3))).float()

    def test_step(self, batch, batch_idx):
        return {"prob": self(batch["image"]).sigmoid(), "index": batch["index"]}


def state(model):
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: module.training for name, module in model.named_modules()},
        [(weight.requires_grad, weight.grad) for weight in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
    )


def assert_same(before, after):
    assert before[0].keys() == after[0].keys()
    for name, value in before[0].items():
        torch.testing.assert_close(after[0][name], value, rtol=0, atol=0, equal_nan=True)
    assert before[1:] == after[1:]


def stage(tmp_path, model=None, **options):
    data = ImageData(Spots, size=SIZE, batch_size=6, fractions=(0.2, 0.2, 0.6))
    callback = GradCam(str(tmp_path / "gradcam"), tolerance=0, replicates=50, **options)
    trainer = pl.Trainer(
        callbacks=[Predictions(), callback], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, precision="bf16-mixed", use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(model or SpotDetector(), data, verbose=False)
    return callback.summary(), data


def test_exact_maps_score_one_and_everything_is_left_as_it_was(tmp_path):
    model = SpotDetector()
    model.features[1].eval()  # a mode of its own, such as a frozen norm has
    before = copy.deepcopy(state(model))
    found, data = stage(tmp_path, model, per_outcome=2)
    assert_same(before, state(model))
    metrics = found["metrics"]
    share = (SPOT / SIZE) ** 2
    for metric in ("pointing_game", "box_iou", "box_energy"):
        assert metrics[f"{metric}/Bright"] == metrics[f"{metric}/macro"] == 1
        assert metrics[f"{metric}_chance/Bright"] == pytest.approx(share)
        assert found["intervals"][f"{metric}/Bright"] == (1, 1)
    positives = int((data.images["test"].table["Bright"] == 1).sum())
    assert found["counts"] == {"boxed/Bright": positives}
    assert found["warnings"] == []

    gallery = pd.read_csv(tmp_path / "gradcam" / "gallery.csv")
    assert gallery.columns.tolist() == ["file", "id", "finding", "label", "probability", "decision", "outcome"]
    kinds = gallery.groupby(["finding", "outcome"]).size().to_dict()
    assert kinds == {("Bright", "true positive"): 2, ("Bright", "true negative"): 2, ("Dark", "false negative"): 2}
    assert ((gallery["probability"] >= 0.5) == (gallery["decision"] == 1)).all()
    assert sorted(path.name for path in (tmp_path / "gradcam").glob("*.png")) == sorted(gallery["file"])
    for name in gallery["file"]:
        Image.open(tmp_path / "gradcam" / name).verify()
    assert gallery["id"].str.startswith("'=").all()


def test_no_gallery_and_no_boxes_are_said_and_not_made_up(tmp_path, monkeypatch):
    found, _ = stage(tmp_path, per_outcome=0, not_in_macro=["Bright"])
    assert "pointing_game/macro" not in found["metrics"]
    assert not (tmp_path / "gradcam").exists()
    original = Spots.__init__
    monkeypatch.setattr(Spots, "__init__", lambda self: (original(self), delattr(self, "boxes"))[0])
    found, _ = stage(tmp_path, per_outcome=0)
    assert found == {
        "metrics": {}, "intervals": {}, "counts": {},
        "warnings": ["no image has a box of a finding: nothing to localise"],
    }  # fmt: skip


def test_maps_that_are_empty_are_counted(tmp_path):
    model = SpotDetector()
    with torch.no_grad():
        model.head.weight.mul_(-1)
    found, _ = stage(tmp_path, model, per_outcome=0)
    count = found["counts"]["boxed/Bright"]
    assert found["metrics"]["box_energy/Bright"] == pytest.approx((SPOT / SIZE) ** 2)
    assert found["warnings"] == [f"Bright: {count} of {count} heat maps are zero everywhere: they score as chance does"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_what_the_model_was_built_to_see(method):
    source, model = Spots(4), SpotDetector()
    image = torch.from_numpy(np.stack([source.image(row, SIZE) for row in (1, 3)])).unsqueeze(1) / 255
    with torch.inference_mode():
        heat = heat_maps(model, image, [0, 0], method)
    assert heat.shape == (2, SIZE, SIZE)
    assert heat.dtype == np.float32
    for row, one in zip((1, 3), heat, strict=True):
        box = [[*source.corner[row] / SIZE, SPOT / SIZE, SPOT / SIZE]]
        assert overlap(one, box) == dict.fromkeys(
            ("pointing_game", "box_iou", "box_energy"), pytest.approx(1, abs=1e-4)
        )


def densenet(**options):
    torch.manual_seed(0)
    tiny = {"growth_rate": 4, "block_config": [1, 1, 1, 1], "init_features": 8}
    return DenseNet121(["Nodule", "Effusion"], **tiny, **options)


def test_the_densenet_is_explained_compiled_or_not_and_left_as_it_was():
    model = densenet()
    image = torch.rand(3, 1, 64, 64)
    model.train()
    model.head.weight.grad = torch.ones_like(model.head.weight)
    model.backbone.features.conv0.weight.requires_grad_(False)
    before = state(model)
    plain = heat_maps(model, image, [0, 1, 0], "hirescam")
    assert_same(before, state(model))
    assert plain.shape == (3, 64, 64)
    assert plain.max() == pytest.approx(1)
    assert not np.array_equal(plain[0], heat_maps(model, image, [1, 1, 0], "hirescam")[0])
    model._compiled_call_impl = partial(pytest.fail, "compiled code runs past the hooks")
    np.testing.assert_array_equal(heat_maps(model, image, [0, 1, 0], "hirescam"), plain)


def test_hirescam_of_the_last_map_is_its_products_with_the_gradient():
    """With global average pooling: weight x activation (Draelos & Carin 2020, equation 6), made here by hand."""
    model = densenet().eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        features = model.backbone.features(image * model.input_scale + model.input_shift).relu()
        expected = (model.head.weight[0].view(-1, 1, 1) * features[0]).sum(0).clamp(min=0).numpy()
    low = heat_maps(model, image, [0], "hirescam", ["backbone.features.norm5"])[0][::63, ::63]
    expected = (expected - expected.min()) / (expected - expected.min()).max()
    np.testing.assert_allclose(low, expected, atol=1e-5)


def test_unknown_names_are_all_named_at_once():
    with pytest.raises(ValueError, match=r"method=magic: choose from .*; layers: the model has no module nowhere"):
        heat_maps(densenet(), torch.rand(1, 1, 32, 32), [0], "magic", ["nowhere"])


def test_an_overlay_shows_the_image_beside_the_heat_with_boxes_in_both():
    heat = np.zeros((SIZE, SIZE), np.float32)
    heat[:8, :8] = 1
    plain = np.asarray(overlay(np.full((SIZE, SIZE), 100, np.uint8), heat))
    side = plain.shape[0]
    assert plain.shape == (side, 2 * side, 3)
    assert (plain[:, :side] == 100).all()
    assert plain[4, side + 4].sum() > plain[-4, -4].sum()
    boxed = np.asarray(overlay(np.full((SIZE, SIZE), 100, np.uint8), heat, np.array([[0.5, 0.5, 0.25, 0.25]])))
    for left in (0, side):
        changed = np.argwhere((boxed != plain).any(2)[:, left : left + side])
        np.testing.assert_allclose([changed.min(0), changed.max(0)], [[side / 2] * 2, [0.75 * side] * 2], atol=1)
