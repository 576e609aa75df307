"""The callback in a real test stage, with generators whose quality is known."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from sklearn.metrics import roc_auc_score

from mmpds.callbacks.quality import Quality
from mmpds.data.batch import PADDING
from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.models.densenet import DenseNet121

SIZE = 32
FINDINGS = ("Pneumonia", "Effusion", "Cardiomegaly")


class Generator(pl.LightningModule):
    """Makes the images that `make` gives of a batch and its real rows."""

    def __init__(self, make):
        super().__init__()
        self.make = make
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def test_step(self, batch, batch_idx):
        return {"image": self.make(batch, self.trainer.datamodule), "index": batch["index"]}


def perfect(batch, data):
    return batch["image"]


def colour(batch, data):
    return batch["image"] + torch.tensor([-0.001, 0.0, 0.001]).view(1, 3, 1, 1)


def copying(batch, data):
    train = data.images["train"]
    rows = [int(train.rows[row % len(train)]) for row in range(len(batch["index"]))]
    pixels = [torch.from_numpy(train.source.image(row, SIZE)).float() / 255 for row in rows]
    return torch.stack(pixels).unsqueeze(1)


def failing(batch, data):
    image = batch["image"].clone()
    image[batch["index"] == 3, :, 5, 5] = torch.nan
    return image


def classifier():
    torch.manual_seed(0)
    return DenseNet121(
        ("Nodule", *reversed(FINDINGS)), threshold={"rule": "fixed", "fixed": 0.5},
        growth_rate=4, block_config=[1, 1, 1, 1], init_features=8,
    )  # fmt: skip


def stage(make, callback, findings=FINDINGS):
    data = ImageData(
        partial(Phantom, images=200), findings=findings, size=SIZE, batch_size=16, fractions=(0.5, 0.1, 0.4)
    )
    trainer = pl.Trainer(
        callbacks=[callback], accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.test(Generator(make), data, verbose=False)
    return callback.summary(), data


def test_a_perfect_generator_is_as_good_as_real_images():
    found, data = stage(perfect, Quality(classifier(), "densenet121 features of tiny.ckpt", replicates=50))
    metrics, items = found["metrics"], len(data.images["test"])
    assert found["extractor"] == "densenet121 features of tiny.ckpt"
    assert metrics["fid"] == pytest.approx(0, abs=1e-6)
    assert metrics["kid"] < 0 < metrics["fid_real"]
    assert metrics["ms_ssim/generated"] == metrics["ms_ssim/real"]
    for name in ("fidelity", "fidelity_chance", "fidelity_auroc"):
        for finding in (*FINDINGS, "macro"):
            assert metrics[f"{name}/{finding}"] == metrics[f"{name}_real/{finding}"]
    images, model = data.images["test"], classifier().eval()
    pixels = torch.stack([torch.from_numpy(images.source.image(int(row), SIZE)) for row in images.rows])
    with torch.inference_mode():
        prob = model(pixels.unsqueeze(1).float() / 255).sigmoid().numpy()
    for column, finding in enumerate(FINDINGS):
        auroc = roc_auc_score(images.label[:, column], prob[:, model.findings.index(finding)])
        assert metrics[f"fidelity_auroc/{finding}"] == pytest.approx(auroc, abs=0.01)  # float32 ties
    for space in ("pixels", "features"):
        assert metrics[f"neighbour_distance/{space}"] == metrics[f"neighbour_distance_real/{space}"] > 0
        assert metrics[f"near_duplicates/{space}"] < 0.02
    assert found["counts"]["items"] == items > 60
    assert found["counts"]["training_images"] == len(data.images["train"])
    asked = data.images["test"].label.sum(0).tolist()
    assert [found["counts"][f"asked/{finding}"] for finding in FINDINGS] == asked
    assert set(found["intervals"]) <= set(metrics)
    for name in ("fid", "kid", "ms_ssim/real", "fidelity/macro", "neighbour_distance/pixels"):
        low, high = found["intervals"][name]
        assert low <= metrics[name] <= high


def test_copies_of_training_images_are_found():
    found, _ = stage(copying, Quality(classifier(), replicates=20))
    assert found["metrics"]["near_duplicates/pixels"] == found["metrics"]["near_duplicates/features"] == 1
    assert found["metrics"]["fid"] > 0.001


def test_without_a_classifier_the_warning_says_what_is_missing():
    found, _ = stage(colour, Quality(replicates=20))
    assert found["extractor"] is None
    assert {name.partition("/")[0] for name in found["metrics"]} == {
        "ms_ssim", "near_duplicates", "neighbour_distance", "neighbour_distance_real",
    }  # fmt: skip
    assert found["metrics"]["ms_ssim/generated"] == pytest.approx(found["metrics"]["ms_ssim/real"], abs=1e-5)
    assert any("callbacks.quality.classifier=FILE.ckpt adds them" in text for text in found["warnings"])


def test_a_failed_item_is_left_out_and_told_of():
    found, data = stage(failing, Quality(replicates=0))
    assert found["counts"]["failed"] == 1
    assert found["counts"]["items"] == len(data.images["test"]) - 1
    assert any(text.startswith("1 generated images failed") for text in found["warnings"])
    assert not found["intervals"]


def test_padding_counts_in_no_figure():
    def padded(batch, data):
        batch["index"][0] = PADDING
        return batch["image"]

    found, data = stage(padded, Quality(replicates=0))
    assert found["counts"]["items"] == len(data.images["test"]) - -(-len(data.images["test"]) // 16)


def test_an_empty_prompt_asks_for_nothing_and_denies_nothing():
    def silent(batch, data):
        data.images["test"].caption[:] = [""] * 10 + data.images["test"].caption[10:]
        return batch["image"]

    found, data = stage(silent, Quality(classifier(), replicates=0))
    asked = data.images["test"].label[10:].sum(0).tolist()
    assert [found["counts"][f"asked/{finding}"] for finding in FINDINGS] == asked
    assert not data.images["test"].label.isnan().any()


def test_wrong_sizes_and_findings_are_refused():
    with pytest.raises(ValueError, match="real images have 32 pixels a side and generated ones 16"):
        stage(lambda batch, data: batch["image"][..., ::2, ::2], Quality())
    with pytest.raises(ValueError, match=r"callbacks\.quality\.classifier: it knows"):
        stage(perfect, Quality(classifier()), findings=("Infiltration",))
