"""What batch normalisation remembers of its training images tells a wrong scale from other images."""

from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate

from mmpds.callbacks.input_range import InputRange
from mmpds.data.batch import PADDING
from mmpds.metrics.diagnosis import diagnose


class Model(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.passes = 0

    def forward(self, image):
        self.passes += 1
        return self.norm(self.conv(image)).mean((2, 3))

    def test_step(self, batch, batch_idx):
        self(batch["image"])

    predict_step = validation_step = test_step


def radiographs(items, seed=0, contrast=1.0):
    """Smooth images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(items, 1, 6, 6, generator=generator)
    smooth = nn.functional.interpolate(noise, size=(24, 24), mode="bilinear")
    return 0.5 + contrast * (smooth - 0.5)


def trained(scale=2048.0, shift=-1024.0):
    torch.manual_seed(0)
    model = Model().train()
    for step in range(60):
        model(radiographs(16, step) * scale + shift)
    return model.eval()


def loader(image, size=8):
    items = [{"image": one, "index": torch.tensor(row)} for row, one in enumerate(image)]
    return DataLoader(items, batch_size=size, collate_fn=default_collate)


def trainer(callback):
    return pl.Trainer(
        accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def measured(model, image, stage="test"):
    callback = InputRange()
    getattr(trainer(callback), stage)(model, loader(image))
    return callback.summary()


def called_wrong(summary):
    found = diagnose([[0.2], [0.8]], [[0], [1]], [0.5], ["x"], input_range=summary)
    return [diagnosis.name for diagnosis in found] == ["unexpected_input_range"]


pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"
)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_the_right_scale_compares_as_equal(stage):
    image = radiographs(20, seed=99) * 2048 - 1024
    summary = measured(trained(), image, stage)
    assert summary["variance_ratio"] == pytest.approx(1, rel=0.3)
    assert summary["mean_shift"] < 0.3
    assert summary["items"] == 8
    assert (summary["minimum"], summary["maximum"]) == (float(image[:8].min()), float(image[:8].max()))
    assert not called_wrong(summary)


@pytest.mark.parametrize(
    ("scale", "shift", "ratio"), [(1, 0, 2048.0**-2), (255, 0, (255 / 2048) ** 2), (2.0e6, 0, (2.0e6 / 2048) ** 2)]
)
def test_confused_ranges_are_far_outside(scale, shift, ratio):
    summary = measured(trained(), radiographs(8, seed=99) * scale + shift)
    assert summary["variance_ratio"] == pytest.approx(ratio, rel=0.3)
    assert called_wrong(summary)


def test_bytes_fed_to_weights_of_unit_images_are_far_outside():
    summary = measured(trained(1, 0), radiographs(8, seed=99) * 255)
    assert 0.3 < summary["variance_ratio"] / 255**2 < 3  # the edge of zeros is in the trained variance
    assert called_wrong(summary)


def test_the_edge_that_padding_makes_is_no_contrast():
    summary = measured(trained(4, -2), radiographs(8, seed=99) / 255 * 4 - 2)
    assert summary["variance_ratio"] < 1e-3
    assert called_wrong(summary)


@pytest.mark.parametrize("contrast", [0.4, 2.0])
def test_flat_and_harsh_exposures_are_ordinary(contrast):
    assert not called_wrong(measured(trained(), radiographs(8, 99, contrast) * 2048 - 1024))


def test_one_forward_a_batch_and_no_hook_stays():
    model = trained()
    model.passes = 0
    expected = model(radiographs(4))
    measured(model, radiographs(20))
    assert model.passes == 1 + 3
    assert not model.conv._forward_pre_hooks
    assert not model.norm._forward_pre_hooks
    assert torch.equal(model(radiographs(4)), expected)


def test_a_compiled_model_is_measured_without_graphs_of_its_own():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    counts, image = [], radiographs(24, seed=99) * 2048 - 1024
    for callback in (pl.Callback(), InputRange()):
        torch.compiler.reset()
        graphs.clear()
        model = trained()
        model.compile(backend=backend)
        trainer(callback).test(model, loader(image))
        counts.append(len(graphs))
    assert 1 <= counts[1] <= counts[0]
    assert callback.summary()["variance_ratio"] == pytest.approx(1, rel=0.3)


def test_padding_is_not_looked_at():
    model, callback = trained(), InputRange()
    image = torch.cat([radiographs(4, seed=99), torch.full((4, 1, 24, 24), 9e9)])
    for index, items in (([0, 1, 2, 3] + [PADDING] * 4, 4), ([PADDING] * 8, None)):
        callback.on_test_batch_start(None, model, {"index": torch.tensor(index)}, 0)
        model(image)
        callback.on_test_batch_end()
        summary = callback.summary()
        assert summary is None if items is None else (summary["items"], summary["maximum"] <= 1) == (4, True)


def test_nothing_is_said_of_weights_that_never_saw_an_image_or_have_no_norm():
    assert measured(Model().eval(), radiographs(8)) is None
    bare = trained()
    bare.norm = nn.Identity()
    assert measured(bare, radiographs(8)) is None


def test_validation_while_training_is_left_alone():
    model, callback = trained(), InputRange()
    callback.on_validation_batch_start(SimpleNamespace(state=SimpleNamespace(fn="fit")), model, None, 0)
    assert not model.norm._forward_pre_hooks
    assert callback.summary() is None


def test_a_batch_that_breaks_leaves_no_hook():
    model, callback = trained(), InputRange()
    callback.on_test_batch_start(None, model, {"index": torch.arange(2)}, 0)
    callback.on_exception(None, None, RuntimeError())
    assert not model.norm._forward_pre_hooks
