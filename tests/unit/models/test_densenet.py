"""The network is torchvision's, the loss sees only what is known, and a checkpoint is all that is needed later."""

import math
import warnings
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.nn import functional as F
from torchvision.models import densenet121

from mmpds.callbacks.ema import EMA
from mmpds.data.batch import PADDING
from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.models.densenet import DenseNet121

FINDINGS = ["Pneumonia", "Nodule", "Effusion"]
SMALL = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "init_features": 8}
IMAGES = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
EPOCHS = 3


def small(findings=FINDINGS, **arguments):
    torch.manual_seed(0)
    return DenseNet121(findings, **SMALL | arguments).eval()


def batch_of(label, padding=()):
    index = torch.arange(len(label))
    index[list(padding)] = PADDING
    return {"image": torch.zeros(len(label), 1, 32, 32), "label": torch.as_tensor(label), "index": index}


# the network


def test_the_default_sizes_are_those_of_densenet121():
    model, reference = DenseNet121(FINDINGS), densenet121(weights=None)
    ours = {name: value.shape for name, value in model.backbone.state_dict().items()}
    theirs = {name: value.shape for name, value in reference.state_dict().items() if "classifier" not in name}
    assert ours.pop("features.conv0.weight") == (64, 1, 7, 7)
    assert theirs.pop("features.conv0.weight") == (64, 3, 7, 7)
    assert ours == theirs
    assert model.head.weight.shape == (3, 1024)
    count = sum(parameter.numel() for parameter in reference.parameters())
    colours, classes = 2 * 64 * 7 * 7, 1024 * 1000 + 1000
    assert sum(p.numel() for p in model.parameters()) == count - colours - classes + 1024 * 3 + 3


@pytest.mark.parametrize("training", [True, False])
def test_features_are_bit_for_bit_those_of_torchvision(training):
    model, reference = DenseNet121(FINDINGS), densenet121(weights=None)
    reference.features.conv0, reference.classifier = model.backbone.features.conv0, torch.nn.Identity()
    reference.load_state_dict(model.backbone.state_dict())
    image = torch.rand(2, 1, 48, 48)
    assert torch.equal(model.backbone.train(training)(image), reference.train(training)(image))


@pytest.mark.parametrize("side", [32, 45, 64])
def test_one_logit_a_finding(side):
    logit = small()(torch.rand(2, 1, side, side))
    assert (logit.dtype, logit.shape) == (torch.float32, (2, 3))


def test_logits_are_float32_though_the_body_computes_in_bfloat16():
    model, seen = small(), []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logit = model(IMAGES)
    assert seen == [torch.bfloat16]
    assert logit.dtype == torch.float32
    assert not torch.equal(logit, logit.bfloat16().float())  # not merely cast
    torch.testing.assert_close(logit, model(IMAGES), atol=0.05, rtol=0.05)


# the loss

LABELS = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, math.nan])] * 3, st.booleans()), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(rows=LABELS, seed=st.integers(0, 1000))
def test_what_is_not_known_adds_neither_loss_nor_gradient(rows, seed):
    model = small()
    model.positive_weight.copy_(torch.tensor([1.0, 4.0, 0.5]))
    *labels, padding = zip(*rows, strict=True)
    batch = batch_of(np.array(labels, np.float32).T, padding=np.flatnonzero(padding))
    logit = torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(seed)).requires_grad_()
    loss = model.loss(logit, batch)
    loss.backward()
    expected, unknown = 0.0, torch.ones(len(rows), 3, dtype=torch.bool)
    for row, column in np.ndindex(len(rows), 3):
        label, prob = rows[row][column], float(logit[row, column].detach().double().sigmoid())
        if not padding[row] and not math.isnan(label):
            unknown[row, column] = False
            weight = float(model.positive_weight[column])
            expected -= weight * math.log(prob) if label else math.log(1 - prob)
    assert loss.item() == pytest.approx(expected / (3 * len(rows)), rel=1e-4, abs=1e-7)
    assert torch.equal(logit.grad[unknown], torch.zeros(int(unknown.sum())))
    assert (logit.grad[~unknown] != 0).all()
    other = torch.where(unknown, 30 - logit, logit)
    assert model.loss(other, batch).item() == loss.item()


def test_the_mean_over_two_half_batches_is_the_whole_batch():
    model = small()
    label = torch.tensor([[1, 0, math.nan], [0, 0, 1], [math.nan] * 3, [1, 1, 0]])
    logit = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    whole = model.loss(logit, batch_of(label, padding=[3]))
    halves = [model.loss(logit[:2], batch_of(label[:2])), model.loss(logit[2:], batch_of(label[2:], padding=[1]))]
    assert sum(halves).item() / 2 == pytest.approx(whole.item(), rel=1e-6)
    assert halves[0] > whole > halves[1] == 0


def test_a_batch_of_nothing_known_has_no_loss():
    assert small().loss(torch.randn(2, 3), batch_of(torch.full((2, 3), math.nan))).item() == 0


# training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return ImageData(partial(Phantom, images=120), findings=FINDINGS, size=32, batch_size=12, cache_dir=cache)


def trainer(folder, *callbacks):
    return pl.Trainer(
        accelerator="cpu", devices=1, plugins=[LightningEnvironment()], max_epochs=EPOCHS, logger=False,
        callbacks=list(callbacks), default_root_dir=str(folder), use_distributed_sampler=False,
        enable_checkpointing=bool(callbacks), num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["plain", "ema"])
def fitted(request, data, tmp_path_factory):
    """A trained model, its trainer, and the folder of the checkpoint of every epoch."""
    folder = tmp_path_factory.mktemp(request.param)
    every = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    average = [EMA(decay=0.6)] if request.param == "ema" else []
    running = trainer(folder, *average, every)
    model = small(class_weights="balanced", learning_rate=1e-2).train()
    running.fit(model, data)
    return model, running, folder


@pytest.fixture(scope="module")
def plain_run(data, tmp_path_factory):
    """The last state of a run without averaging."""
    model = small(class_weights="balanced", learning_rate=1e-2).train()
    trainer(tmp_path_factory.mktemp("plain_run")).fit(model, data)
    return model.state_dict()


def test_a_checkpoint_alone_gives_the_same_model(fitted, tmp_path):
    model, running, _ = fitted
    running.save_checkpoint(tmp_path / "a.ckpt")
    hyper_parameters = torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"]
    assert hyper_parameters["findings"] == FINDINGS
    loaded = DenseNet121.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    assert loaded.findings == tuple(FINDINGS)
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), model.eval()(IMAGES))
    assert loaded.threshold.fitted
    assert torch.equal(loaded.threshold.value, model.threshold.value)
    assert torch.equal(loaded.positive_weight, model.positive_weight)


def test_every_checkpoint_holds_the_thresholds_of_its_own_weights(fitted, data, tmp_path):
    _, _, folder = fitted
    found = []
    for epoch in range(EPOCHS):
        model = DenseNet121.load_from_checkpoint(folder / f"epoch={epoch}.ckpt", weights_only=True)
        kept = model.threshold.value.clone()
        model.threshold.value.fill_(math.nan)
        trainer(tmp_path).validate(model, data, verbose=False)
        torch.testing.assert_close(kept, model.threshold.value, atol=1e-6, rtol=0)
        found.append(kept)
    assert any(not torch.equal(found[0], other) for other in found)  # else any state would have passed
    assert not model.threshold.unfit


def test_stated_thresholds_overrule_those_of_a_checkpoint(fitted):
    _, _, folder = fitted
    stated = {"rule": "fixed", "fixed": 0.3}
    model = DenseNet121.load_from_checkpoint(folder / "epoch=0.ckpt", weights_only=True, threshold=stated)
    assert model.threshold.value.tolist() == pytest.approx([0.3] * 3)


def test_averaging_changes_what_is_kept_and_not_what_is_trained(fitted, plain_run):
    _, running, folder = fitted
    saved = torch.load(folder / f"epoch={EPOCHS - 1}.ckpt", weights_only=True)
    averaged = any(isinstance(callback, EMA) for callback in running.callbacks)
    trained = saved["current_model_state"] if averaged else saved["state_dict"]
    learned = [name for name in plain_run if name.startswith(("backbone", "head"))]
    assert all(torch.equal(trained[name], plain_run[name]) for name in learned)
    weights = [name for name in learned if name.endswith("weight")]
    differs = {name for name in weights if not torch.equal(saved["state_dict"][name], trained[name])}
    assert differs == (set(weights) if averaged else set())


def test_balanced_positives_weigh_by_the_training_split(fitted, data):
    model, _, _ = fitted
    label = data.images["train"].label.numpy()
    expected = (label == 0).sum(0) / (label == 1).sum(0)
    np.testing.assert_allclose(model.positive_weight, expected, rtol=1e-6)
    assert (model.positive_weight > 1).all()


def test_positives_weigh_one_unless_told_otherwise(data, tmp_path):
    model = small().train()
    trainer(tmp_path).fit(model, data)
    assert model.positive_weight.tolist() == [1, 1, 1]


def test_norms_and_biases_do_not_decay_and_the_rate_ends_at_zero(fitted):
    model, running, _ = fitted
    decayed, plain = running.optimizers[0].param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (1e-2, 0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in plain["params"]} == {1}
    assert len(decayed["params"]) + len(plain["params"]) == len(list(model.parameters()))
    factor = running.lr_scheduler_configs[0].scheduler.lr_lambdas[0]
    steps = int(running.estimated_stepping_batches)
    rates = [factor(step) for step in range(steps + 1)]
    warmup = int(steps * 0.1)
    assert rates[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert all(earlier > later for earlier, later in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert (rates[warmup], rates[steps]) == (1, pytest.approx(0, abs=1e-12))


# weights from elsewhere


def test_weights_of_a_checkpoint_of_ours_find_their_findings(fitted, tmp_path):
    _, _, folder = fitted
    saved = torch.load(folder / "epoch=0.ckpt", weights_only=True)
    saved["state_dict"] |= {"input_scale": torch.tensor(3.0), "input_shift": torch.tensor(-1.0)}
    torch.save(saved, tmp_path / "a.ckpt")
    model = DenseNet121.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    other = small(["Effusion", "Zebra", "Pneumonia"])
    fresh = other.head.weight[1].clone()
    other.load_weights(str(tmp_path / "a.ckpt"))
    with torch.no_grad():
        torch.testing.assert_close(other(IMAGES)[:, [0, 2]], model(IMAGES)[:, [2, 0]])
    assert torch.equal(other.head.weight[1], fresh)
    assert not other.threshold.fitted  # another data set's operating points are its own


def test_weights_of_torchxrayvision_get_the_input_they_were_trained_on(tmp_path):
    with warnings.catch_warnings():
        import torchxrayvision
    torch.manual_seed(0)
    sizes = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "num_init_features": 8}
    theirs = torchxrayvision.models.DenseNet(**sizes, num_classes=3).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    ours = small()
    ours.load_weights(str(tmp_path / "w.pt"))
    ours.head.load_state_dict(theirs.classifier.state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (2, 1, 64, 64))
    normalised = torch.from_numpy(torchxrayvision.datasets.normalize(pixels, 255)).float()
    with torch.no_grad():
        features = F.adaptive_avg_pool2d(F.relu(theirs.features(normalised)), 1).flatten(1)
        expected = theirs.classifier(features)
        torch.testing.assert_close(ours(torch.from_numpy(pixels).float() / 255), expected, rtol=1e-3, atol=1e-3)
