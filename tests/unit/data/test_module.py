"""From a source to batches: no patient in two splits, no label that nobody gave, every batch as the contract says."""

import shutil
from functools import partial
from types import SimpleNamespace

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from PIL import Image

from mmpds.data.batch import PADDING
from mmpds.data.chest_xray import ChestXray
from mmpds.data.module import BadImages, ImageData, official_split
from mmpds.data.phantom import Phantom
from mmpds.data.transforms import to_image

SIZE = 32
PHANTOM = partial(Phantom, images=60)
FINDINGS = ("Pneumonia", "Nodule")


def ready(source=PHANTOM, stage="fit", **arguments):
    """An ImageData on one rank, set up for a stage."""
    data = ImageData(source, **{"size": SIZE, "batch_size": 6} | arguments)
    data.prepare_data()
    data.setup(stage)
    data.trainer = pl.Trainer(
        accelerator="cpu", plugins=[LightningEnvironment()], logger=False, enable_checkpointing=False
    )
    return data


def of_rank(data, rank, world_size):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, fit_loop=data.trainer.fit_loop)
    return data


def write_folders(root, patients=12, images=2, shade=0):
    """NORMAL and PNEUMONIA of so many patients with so many images each, all different."""
    for patient in range(patients):
        for number in range(images):
            ill = patient % 2
            folder = root / ("PNEUMONIA" if ill else "NORMAL")
            folder.mkdir(parents=True, exist_ok=True)
            name = f"person{patient}_bacteria_{number}.png" if ill else f"IM-{patient:04}-{number:04}.png"
            pixels = np.full((SIZE, SIZE), shade, np.uint8)
            pixels[0, :2] = patient, number  # every image its own bytes
            Image.fromarray(pixels).save(folder / name)
    return root


@pytest.fixture
def folders(tmp_path):
    return write_folders(tmp_path / "images")


class Official:
    """A source in memory with an official split; `twins` are rows whose image is that of the row before."""

    findings = FINDINGS

    def __init__(self, split, groups, twins=()):
        split, rows = list(split), len(split)
        self.table = pd.DataFrame({
            "id": [f"image{row}" for row in range(rows)], "group": [f"p{group}" for group in groups],
            "normal": False, "split": split,
            "Pneumonia": np.arange(rows) % 2.0, "Nodule": np.arange(rows) // 2 % 2.0,
        })  # fmt: skip
        self.twins = twins

    def image(self, row, size):
        return np.full((size, size), self._shown(row), np.uint8)

    def digest(self, row):
        return str(self._shown(row))

    def _shown(self, row):
        return row - 1 if row in self.twins else row


def official(*arguments, **options):
    return lambda: Official(*arguments, **options)


def tables(data):
    return {name: images.table for name, images in data.images.items()}


# splits


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_splits_share_no_patient_and_cover_all(seed):
    data = ready(seed=seed)
    groups = [set(table["group"]) for table in tables(data).values()]
    assert [len(group) > 0 for group in groups] == [True] * 3
    assert sum(map(len, groups)) == len(set.union(*groups))
    ids = pd.concat(tables(data).values())["id"]
    assert sorted(ids) == sorted(Phantom(60).table["id"])
    assert ready(seed=seed).images["val"].table.equals(data.images["val"].table)


def test_class_folders_are_split_by_person_and_keep_their_labels(folders):
    data = ready(ChestXray, root=str(folders))
    assert data.findings == ("Pneumonia",)
    assert sum(map(len, data.images.values())) == 24
    assert not set(data.images["train"].table["group"]) & set(data.images["test"].table["group"])
    for images in data.images.values():
        ill = images.table["path"].str.startswith("PNEUMONIA").to_numpy(dtype=np.float32)
        np.testing.assert_array_equal(images.label[:, 0], ill)
        np.testing.assert_array_equal(images.table["normal"], ill == 0)


def test_patients_who_share_an_image_share_a_split(folders):
    # five patients in a chain, each with a copy of the next one's image
    for patient in (1, 3, 5, 7):
        shutil.copy(
            folders / "PNEUMONIA" / f"person{patient + 2}_bacteria_1.png",
            folders / "PNEUMONIA" / f"person{patient}_bacteria_9.png",
        )
    places = set()
    for seed in range(4):
        named = tables(ready(ChestXray, root=str(folders), seed=seed))
        chain = {
            name for name, table in named.items() if table["group"].isin([f"person{p}" for p in (1, 3, 5, 7, 9)]).any()
        }
        assert len(chain) == 1
        places |= chain
    assert sum(map(len, named.values())) == 28


@pytest.mark.parametrize("stages", [["test"], ["test", "fit"], ["fit", "test"], ["fit", "validate", "test"]])
def test_another_folder_is_the_test_split_as_a_whole(folders, tmp_path, stages):
    elsewhere = write_folders(tmp_path / "elsewhere", patients=5, images=1, shade=200)
    data = ImageData(ChestXray, root=str(folders), test_root=str(elsewhere), size=SIZE)
    for stage in stages:
        data.setup(stage)
    assert sorted(data.images["test"].table["path"]) == sorted(ChestXray(elsewhere).table["path"])
    if "fit" in stages:
        assert len(data.images["train"]) > len(data.images["val"]) > 0


def test_only_another_folder_can_be_tested_and_nothing_fitted(folders):
    data = ImageData(ChestXray, test_root=str(folders), size=SIZE)
    data.setup("test")
    assert len(data.images["test"]) == 24
    with pytest.raises(ValueError, match=r"data\.root: give the folder"):
        data.setup("fit")


@pytest.mark.parametrize("source", [PHANTOM, ChestXray])
def test_a_plain_folder_is_predicted_whole_and_without_labels(folders, source):
    data = ready(source, stage="predict", predict_root=str(folders), findings=FINDINGS)
    (batch, *_), table = list(data.predict_dataloader()), data.images["predict"].table
    assert len(table) == 24
    assert batch["label"].isnan().all()
    assert batch["label"].shape == (6, 2)


def test_a_source_that_needs_no_folder_is_fitted_and_another_folder_predicted(folders):
    data = ready(predict_root=str(folders))
    assert data.findings == Phantom(1).findings
    data.setup("predict")
    sizes = {name: len(images) for name, images in data.images.items()}
    assert sizes == {"train": 42, "val": 9, "test": 9, "predict": 24}


def test_prediction_needs_a_folder():
    with pytest.raises(ValueError, match=r"data\.predict_root: give the folder"):
        ready(stage="predict")


# the official split


def test_an_official_split_is_kept_and_val_is_carved_from_its_training_patients():
    groups = np.arange(60) // 3
    split = np.where(groups < 14, "train", "test")
    data = ready(official(split, groups), split="official", fractions=(0.6, 0.2, 0.2))
    named = tables(data)
    assert sorted(named["test"]["id"]) == [f"image{row}" for row in range(42, 60)]
    assert (named["val"]["split"] == "train").all()
    assert not set(named["train"]["group"]) & set(named["val"]["group"])
    assert len(named["train"]) + len(named["val"]) == 42
    assert len(named["val"]) == pytest.approx(42 * 0.2 / 0.8, abs=3)  # to within one patient


def test_an_official_split_with_val_is_taken_as_it_is():
    split = ["train", "val", "test"] * 6
    data = ready(official(split, range(18)), split="official")
    assert all((table["split"] == name).all() for name, table in tables(data).items())


def test_identical_images_of_two_training_patients_are_carved_together():
    groups = np.arange(40)
    split, twins = np.where(groups < 30, "train", "test"), set(range(1, 30, 2))
    for seed in range(3):
        named = tables(ready(official(split, groups, twins), split="official", seed=seed))
        carved = set(named["val"]["id"].str.removeprefix("image").astype(int) // 2)
        assert carved.isdisjoint(named["train"]["id"].str.removeprefix("image").astype(int) // 2)


@pytest.mark.parametrize(
    ("groups", "twins", "leak"),
    [
        ([0, 1, 2, 3, 4, 3, 6, 7], (), "patient p3 is in train and test"),
        (range(8), (4,), "an image that patients p3 and p4 share is in train and test"),
    ],
)
def test_an_official_split_that_leaks_is_refused(groups, twins, leak):
    split = ["train", "val"] * 2 + ["test"] * 4
    split[3], split[1], split[0] = "train", "val", "val"
    with pytest.raises(ValueError, match=rf"the splits leak: {leak}; use data\.split=own"):
        ready(official(split, groups, twins), split="official")


@pytest.mark.parametrize("split", [[None] * 6, ["train", "test", None] * 2])
def test_without_an_official_split_the_cure_is_told(split):
    with pytest.raises(ValueError, match=r"data\.split=official: .* use data\.split=own"):
        ready(official(split, range(6)), split="official")
    with pytest.raises(ValueError, match=r"data\.split=official"):
        official_split(Phantom(6).table, FINDINGS, (0.7, 0.15, 0.15), seed=0, digests=[])


# labels


def test_findings_of_another_model_are_unknown_here():
    data = ImageData(PHANTOM, size=SIZE, batch_size=6)
    data.findings = ("Zebra", "Pneumonia", "Hernia")
    data.setup("test")
    images = data.images["test"]
    assert images.label[:, [0, 2]].isnan().all()
    np.testing.assert_array_equal(images.label[:, 1], images.table["Pneumonia"])


def test_only_the_findings_asked_for_in_their_order():
    data = ready(findings=["Nodule", "Pneumonia"])
    assert data.findings == ("Nodule", "Pneumonia")
    table = data.images["train"].table
    np.testing.assert_array_equal(data.images["train"].label, table[["Nodule", "Pneumonia"]])
    with pytest.raises(ValueError, match=r"data\.findings: \['Zebra'\] are not labelled here; .*Pneumonia"):
        ImageData(PHANTOM, findings=["Nodule", "Zebra"])


def test_the_weight_of_positives_is_negatives_over_positives():
    label = {"Pneumonia": [1, 0, 0, 0, np.nan, 0], "Nodule": [0, 0, np.nan, 0, 0, 0], "Mass": [1] * 6}
    data = ImageData(PHANTOM)
    data.findings = tuple(label)
    data.images["train"] = SimpleNamespace(label=torch.tensor(pd.DataFrame(label).to_numpy(np.float32)))
    weight = data.positive_weight()
    assert weight.dtype == torch.float32
    assert weight.tolist() == [4.0, 1.0, 0.0]


# images that cannot be read


@pytest.fixture
def damaged(folders):
    (folders / "PNEUMONIA" / "person1_bacteria_0.png").write_bytes(b"no image")
    (folders / "NORMAL" / "IM-0002-0001.png").write_bytes(b"")
    return folders


REASONS = {"NORMAL/IM-0002-0001.png": "empty file", "PNEUMONIA/person1_bacteria_0.png": "not an image"}


@pytest.mark.parametrize("cached", [True, False])
def test_unreadable_images_are_left_out_and_listed(damaged, tmp_path, cached):
    cache = str(tmp_path / "cache") if cached else None
    data = ready(ChestXray, root=str(damaged), on_bad_image="skip", cache_dir=cache)
    assert sorted(data.rejected.itertuples(index=False, name=None)) == sorted(REASONS.items())
    ids = pd.concat(tables(data).values())["id"]
    assert len(ids) == 22
    assert ids.is_unique
    assert not set(ids) & set(REASONS)
    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for batch in getattr(data, name)():
            assert batch["image"].isfinite().all()


def test_unreadable_images_can_be_an_error_that_names_them(damaged):
    with pytest.raises(BadImages) as caught:
        ready(ChestXray, root=str(damaged), on_bad_image="error")
    text = str(caught.value)
    assert text.startswith("2 unreadable images (")
    assert all(f"{name}: {reason}" in text for name, reason in REASONS.items())
    assert "data.on_bad_image=skip" in text
    assert caught.value.rejected["id"].tolist() == sorted(REASONS)


def test_many_unreadable_images_are_counted(folders):
    for path in (folders / "NORMAL").iterdir():
        path.write_bytes(b"")
    with pytest.raises(BadImages, match=r"^12 unreadable images \(.*IM-0004-0000.png: empty file and 7 more\)"):
        ready(ChestXray, root=str(folders))


# batches


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_a_batch_is_as_the_contract_says(loader):
    data = ready(findings=FINDINGS, batch_size=4)
    images = data.images[loader.split("_")[0]]
    batches = list(getattr(data, loader)())
    seen = []
    for batch in batches:
        assert set(batch) == {"image", "label", "caption", "index"}
        rows = len(batch["index"])
        assert batch["caption"] == images.table.loc[batch["index"].tolist(), "caption"].tolist()
        assert (batch["image"].dtype, batch["image"].shape) == (torch.float32, (rows, 1, SIZE, SIZE))
        assert 0 <= batch["image"].min() < batch["image"].max() <= 1
        assert (batch["label"].dtype, batch["label"].shape) == (torch.float32, (rows, 2))
        assert (batch["index"].dtype, batch["index"].shape) == (torch.int64, (rows,))
        for row, image, label in zip(batch["index"].tolist(), batch["image"], batch["label"], strict=True):
            np.testing.assert_array_equal(label, images.table.loc[row, list(FINDINGS)].to_numpy(float))
            if loader != "train_dataloader":
                pixels = data.source.image(int(images.table["id"][row].split("-")[-1]), SIZE)
                assert torch.equal(image, to_image(pixels))
        seen += batch["index"].tolist()
    if loader == "train_dataloader":
        assert {len(batch["index"]) for batch in batches} == {4}
        assert len(set(seen)) == len(seen) == len(images) // 4 * 4
    else:
        assert seen == list(range(len(images)))


def test_two_ranks_see_each_item_once_and_pad(folders):
    data = ready(ChestXray, "test", test_root=str(folders), batch_size=4)
    data.images["test"].rows = data.images["test"].rows[:7]
    shares = [[b["index"].tolist() for b in of_rank(data, rank, 2).test_dataloader()] for rank in (0, 1)]
    assert shares == [[[0, 1], [2, 3]], [[4, 5], [6, PADDING]]]


def alike(one, other):
    return one.pop("caption") == other.pop("caption") and all(torch.equal(one[name], other[name]) for name in one)


def test_two_ranks_train_on_the_global_batch_of_one():
    data = ready(batch_size=4)
    one = list(data.train_dataloader())
    first, second = (list(of_rank(data, rank, 2).train_dataloader()) for rank in (0, 1))
    for whole, *halves in zip(one, first, second, strict=True):
        for name in ("image", "label", "index"):
            assert torch.equal(whole[name], torch.cat([half[name] for half in halves]))
        assert whole["caption"] == halves[0]["caption"] + halves[1]["caption"]


def test_a_worker_process_gives_the_same_batches(tmp_path):
    plain = ready(cache_dir=str(tmp_path), rebalance="balanced")
    apart = ready(cache_dir=str(tmp_path), rebalance="balanced", workers=1)
    count = 0
    for one, other in zip(plain.train_dataloader(), apart.train_dataloader(), strict=True):
        assert alike(one, other)
        count += 1
    assert count == len(plain.images["train"]) // 6


def test_the_cache_changes_no_image(tmp_path):
    plain, cached = ready(), ready(cache_dir=str(tmp_path))
    for one, other in zip(plain.train_dataloader(), cached.train_dataloader(), strict=True):
        assert alike(one, other)


def test_augmentation_is_for_training_and_can_be_left_out():
    data, bare = ready(), ready(augment=False)
    (batch, *_), (plain, *_) = data.train_dataloader(), bare.train_dataloader()
    assert torch.equal(batch["index"], plain["index"])
    assert not torch.equal(batch["image"], plain["image"])
    for row, image in zip(bare.images["train"].rows[plain["index"]], plain["image"], strict=True):
        assert torch.equal(image, to_image(bare.source.image(row, SIZE)))


# what cannot work


def test_too_few_patients_for_the_splits():
    with pytest.raises(ValueError, match="2 patients cannot fill 3 splits"):
        ready(official([None] * 6, [0, 0, 0, 1, 1, 1]))


def test_a_split_without_images():
    with pytest.raises(ValueError, match=r"data: a split has no images; .*data\.fractions"):
        ready(official(["train"] * 9, range(9)), split="official")


def test_nothing_can_be_read(folders):
    for path in folders.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="0 patients cannot fill 3 splits"):
        ready(ChestXray, root=str(folders), on_bad_image="skip")


def test_a_batch_larger_than_the_training_split():
    with pytest.raises(ValueError, match=r"batch_size=500 is larger than the training set of \d+"):
        ready(batch_size=500).train_dataloader()
