"""Weights keep their function on the way from every form into ours."""

import os
import pickle
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmpds.models import weight_files
from mmpds.models.pretrained import PretrainedError, densenet121

NAME = "densenet121-res224-nih"
LABELS = ["Atelectasis", "", "Pleural_Thickening", "Pneumonia"]
FINDINGS = ("Pneumonia", "pleural thickening", "Zebra")
IMAGES = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def xray():
    with warnings.catch_warnings():
        from torchxrayvision.models import DenseNet
    torch.manual_seed(0)
    return DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=8, num_classes=len(LABELS)).eval()


def body() -> nn.Module:
    """An untrained network of the same shape, for three findings."""
    with warnings.catch_warnings():
        from torchxrayvision.models import DenseNet

    return DenseNet(growth_rate=8, block_config=(2, 2), num_init_features=8, num_classes=3).eval()


@pytest.mark.parametrize("zipfile", [True, False], ids=["torch>=1.6", "torch<1.6"])
def test_torchxrayvision_weights_compute_the_same(xray, tmp_path, zipfile, monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(weight_files, "_published", lambda _: ("https://nowhere.invalid/w.pt", LABELS))
    torch.save(xray, tmp_path / f"{NAME}.pt", _use_new_zipfile_serialization=zipfile)
    filters = list(warnings.filters)
    found = densenet121(NAME, cache_dir=tmp_path)
    assert warnings.filters == filters

    target = body()
    fresh = target.classifier.weight[2].clone()
    found.load_into(target.features, target.classifier, FINDINGS)
    with torch.no_grad():
        expected = xray.features(IMAGES * 2048 - 1024)
        torch.testing.assert_close(target.features(found.scale * IMAGES + found.shift), expected, rtol=1e-5, atol=1e-5)
    # the unnamed row is untrained
    assert set(found.rows) == {"atelectasis", "pleural thickening", "pneumonia"}
    torch.testing.assert_close(target.classifier.weight[:2], xray.classifier.weight[[3, 2]])
    torch.testing.assert_close(target.classifier.bias[:2], xray.classifier.bias[[3, 2]])
    torch.testing.assert_close(target.classifier.weight[2], fresh)
    assert "freshly initialised: ['Zebra']" in caplog.text

    (tmp_path / f"{NAME}.pt").unlink()  # only the safetensors is read from now on
    again = densenet121(NAME, cache_dir=tmp_path)
    assert all(torch.equal(again.features[key], value) for key, value in found.features.items())
    with pytest.raises(PretrainedError, match="stems from a file of SHA-256"):
        densenet121(NAME, cache_dir=tmp_path, sha256="0" * 64)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_plain_state_dict_of_a_radiograph_model(xray, tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    state = xray.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    found = densenet121(str(path))
    assert (found.scale, found.shift) == (2048, -1024)
    assert found.rows == {}  # the file does not name its rows
    body().features.load_state_dict(found.features)


def test_three_channel_weights_see_grey_as_rgb(tmp_path):
    torch.manual_seed(0)
    colour = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
    old = "features.denseblock1.denselayer1.norm.1.weight"
    torch.save({"features.conv0.weight": colour.weight.detach(), old: torch.ones(8)}, tmp_path / "w.pth")
    found = densenet121(str(tmp_path / "w.pth"))
    assert "denseblock1.denselayer1.norm1.weight" in found.features
    grey = (IMAGES - 0.449) / 0.226
    torch.testing.assert_close(
        nn.functional.conv2d(found.scale * IMAGES + found.shift, found.features["conv0.weight"], None, 2, 3),
        colour(grey.expand(-1, 3, -1, -1)).detach(), rtol=1e-4, atol=1e-4,
    )  # fmt: skip


def checkpoint(xray, path: Path, **extra) -> str:
    state = {f"net.backbone.{key}": value for key, value in xray.state_dict().items() if "features" in key}
    state |= {f"net.head.{key}": value for key, value in xray.classifier.state_dict().items()}
    state |= {f"net.{key}": torch.tensor(value) for key, value in extra.items()}
    torch.save({"state_dict": state, "hyper_parameters": {"findings": LABELS}}, path)
    return str(path)


def test_checkpoint_of_ours(xray, tmp_path):
    found = densenet121(checkpoint(xray, tmp_path / "a.ckpt", input_scale=3.0, input_shift=1.0))
    assert (found.scale, found.shift) == (3, 1)
    torch.testing.assert_close(found.rows["pneumonia"][0], xray.classifier.weight[3])
    body().features.load_state_dict(found.features)


def test_checkpoint_that_hides_its_input_is_refused(xray, tmp_path):
    with pytest.raises(PretrainedError, match="no input_scale"):
        densenet121(checkpoint(xray, tmp_path / "a.ckpt"))


def test_imagenet_without_a_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no route")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(PretrainedError, match=r"no route; without a network, download https://.*densenet121-\w+\.pth"):
        densenet121("imagenet", cache_dir=tmp_path)


@pytest.mark.parametrize("weights", [None, "none"])
def test_from_scratch_changes_nothing(weights):
    found = densenet121(weights)
    target = body()
    before = {key: value.clone() for key, value in target.state_dict().items()}
    found.load_into(target.features, target.classifier, FINDINGS)
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())


def test_errors_name_the_weights(tmp_path):
    with pytest.raises(PretrainedError, match=r"weights='densenet'.*densenet121-res224-all"):
        densenet121("densenet")
    torch.save({"layer": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(PretrainedError, match="holds 0 DenseNet bodies"):
        densenet121(str(tmp_path / "w.pt"))
    torch.save({"features.conv0.weight": torch.ones(8, 1, 7, 7)}, tmp_path / "w.pt")
    with pytest.raises(PretrainedError, match="do not fit this network"):
        densenet121(str(tmp_path / "w.pt")).load_into(body().features, nn.Linear(1, 1), ())
    (tmp_path / "w.pt").write_bytes(pickle.dumps(os.system, protocol=2))
    with pytest.raises(PretrainedError, match="plain torch state dict"):
        densenet121(str(tmp_path / "w.pt"))
