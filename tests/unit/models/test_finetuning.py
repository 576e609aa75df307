"""The focal loss is Lin's; a frozen backbone stays bit by bit; a run resumes before and after it thaws."""

import math
from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import LightningEnvironment

from mmpds.callbacks.ema import EMA
from mmpds.callbacks.resume import StepSeed
from mmpds.data.batch import PADDING
from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.models.densenet import DenseNet121

FINDINGS = ["Pneumonia", "Nodule", "Effusion"]
SMALL = {"growth_rate": 4, "block_config": (1, 1, 1, 1), "init_features": 8}
FROZEN, EPOCHS, STEPS = 2, 4, 7  # epochs, epochs, steps an epoch
RECIPE = {"freeze_epochs": FROZEN, "backbone_learning_rate_factor": 0.1, "learning_rate": 1e-2, "weight_decay": 0.5}


def small(**arguments):
    torch.manual_seed(0)
    return DenseNet121(FINDINGS, **SMALL | arguments)


# the loss

ROWS = st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, math.nan])] * 3, st.booleans()), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(rows=ROWS, seed=st.integers(0, 1000))
def test_the_focal_loss_is_that_of_the_paper_over_what_is_known(rows, seed):
    model = small(loss="focal")
    model.positive_weight.copy_(torch.tensor([1.0, 4.0, 0.5]))
    *columns, padding = zip(*rows, strict=True)
    label = np.array(columns, np.float32).T
    index = torch.arange(len(rows)).where(~torch.tensor(padding), PADDING)
    batch = {"image": torch.zeros(len(rows), 1, 32, 32), "label": torch.from_numpy(label), "index": index}
    logit = (3 * torch.randn(len(rows), 3, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    loss = model.loss(logit, batch)
    loss.backward()

    prob = 1 / (1 + np.exp(-logit.detach().double().numpy()))
    true = np.where(label == 1, prob, 1 - prob)
    alpha = np.where(label == 1, model.positive_weight.numpy(), 1)
    known = ~np.isnan(label) & ~np.array(padding)[:, None]
    expected = (-alpha * (1 - true) ** 2 * np.log(true))[known].sum() / known.size  # FL(p_t), eq. 5
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert not logit.grad[~torch.from_numpy(known)].any()


def test_all_bad_arguments_are_told_at_once():
    with pytest.raises(ValueError, match=r"loss=foca.*factor=0.*freeze_epochs=-1"):
        small(loss="foca", backbone_learning_rate_factor=0, freeze_epochs=-1)


# training


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    cache = str(tmp_path_factory.mktemp("cache"))
    return ImageData(partial(Phantom, images=60), findings=FINDINGS, size=32, batch_size=6, cache_dir=cache)


class States(Callback):
    """Keeps the learned state at the beginning, and after each epoch's last step and validation."""

    def __init__(self):
        self.states, self.moments = [], []

    def _keep(self, model):
        self.states.append({name: value.clone() for name, value in model.state_dict().items()})

    def on_fit_start(self, trainer, pl_module):
        self._keep(pl_module)

    def on_train_epoch_end(self, trainer, pl_module):
        self._keep(pl_module)
        self.moments.append({parameter: dict(state) for parameter, state in trainer.optimizers[0].state.items()})


def fit(folder, data, *callbacks, model=None, ckpt_path=None, **options):
    options = {"devices": 1, "plugins": [LightningEnvironment()], "logger": False} | options
    model = model or small(drop_rate=0.2, **RECIPE).train()
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, default_root_dir=str(folder), callbacks=[StepSeed(0), *callbacks],
        use_distributed_sampler=False, num_sanity_val_steps=0, enable_progress_bar=False, log_every_n_steps=1,
        enable_model_summary=False, enable_checkpointing=True, **options,
    )  # fmt: skip
    trainer.fit(model, data, ckpt_path=ckpt_path, weights_only=True)
    return model, trainer


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """A run from start to end: its folder of checkpoints (every third step), states, model and trainer."""
    folder = tmp_path_factory.mktemp("whole")
    every = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=3)
    states, logger = States(), CSVLogger(folder, name="", version="")
    rates = LearningRateMonitor("step")
    model, trainer = fit(folder, data, EMA(decay=0.6), every, states, rates, logger=logger)
    assert trainer.num_training_batches == STEPS
    return folder, states, model, trainer


def moved(before, after):
    """Names of what training can change and did."""
    return {
        name for name in before if name.startswith(("backbone", "head")) and not torch.equal(before[name], after[name])
    }


def test_a_frozen_backbone_stays_bit_by_bit_and_then_all_of_it_learns(whole):
    _, kept, *_ = whole
    head = {"head.weight", "head.bias"}
    epochs = [moved(*pair) for pair in zip(kept.states, kept.states[1:], strict=False)]
    assert epochs[:FROZEN] == [head] * FROZEN  # neither decay nor statistics
    learned = {name for name in kept.states[0] if name.startswith(("backbone", "head"))}
    assert epochs[FROZEN:] == [learned] * (EPOCHS - FROZEN)


def test_frozen_steps_are_none_to_the_optimizer(whole):
    _, kept, model, _ = whole
    head, backbone = list(model.head.parameters()), list(model.backbone.parameters())
    for epoch, moments in enumerate(kept.moments):
        assert set(moments) == set(head if epoch < FROZEN else [*head, *backbone])
    assert {int(kept.moments[-1][parameter]["step"]) for parameter in backbone} == {(EPOCHS - FROZEN) * STEPS}


def test_each_part_warms_up_to_its_own_rate_from_where_it_begins(whole):
    folder, *_, trainer = whole
    log = np.genfromtxt(folder / "metrics.csv", delimiter=",", names=True)
    names = sorted(name for name in log.dtype.names if name.startswith("lr"))
    assert len(names) == 4
    rates = np.array([log[name][~np.isnan(log[name])] for name in names])
    assert rates.shape == (4, EPOCHS * STEPS)
    np.testing.assert_array_equal(rates[::2], rates[1::2])
    backbone, head = rates[::2] / RECIPE["learning_rate"]
    frozen = FROZEN * STEPS
    assert not backbone[:frozen].any()
    assert (backbone[frozen:] > 0).all()
    assert (backbone.max(), head.max()) == (pytest.approx(0.1), pytest.approx(1))
    assert head.argmax() < frozen <= backbone.argmax()
    decays = [group["weight_decay"] for group in trainer.optimizers[0].param_groups]
    assert decays == [0.5, 0, 0.5, 0]


# within the first frozen epoch, within the last one, at the first thawed step, later
@pytest.mark.parametrize("step", [3, 12, 15, 24])
def test_resumed_frozen_or_thawed_it_ends_bit_by_bit_the_same(whole, data, tmp_path, step):
    folder, kept, *_ = whole
    again = States()
    fit(
        tmp_path,
        data,
        EMA(decay=0.6),
        again,
        model=small(drop_rate=0.2, **RECIPE),
        ckpt_path=folder / f"step={step}.ckpt",
    )
    assert kept.states[-1].keys() == again.states[-1].keys()
    different = [n for n, v in kept.states[-1].items() if v.numpy().tobytes() != again.states[-1][n].numpy().tobytes()]
    assert different == []


def test_a_checkpoint_from_before_there_was_fine_tuning_loads(whole, tmp_path):
    folder, *_ = whole
    saved = torch.load(folder / "step=3.ckpt", weights_only=True)
    for name in ("loss", "freeze_epochs", "backbone_learning_rate_factor"):
        del saved["hyper_parameters"][name]
    torch.save(saved, tmp_path / "old.ckpt")
    model = DenseNet121.load_from_checkpoint(tmp_path / "old.ckpt", weights_only=True)
    assert (model.hparams["loss"], model.hparams["freeze_epochs"]) == ("bce", 0)
