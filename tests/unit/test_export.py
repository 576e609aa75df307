"""A generator's checkpoint as a folder of diffusers; what is wrong, in one line."""

import pytest
import torch

from mmpds.export import main
from mmpds.models.densenet import DenseNet121
from tests.unit.models.test_diffusion import latent, model


def saved(built, path):
    """A checkpoint as Lightning writes it."""
    content = {
        "state_dict": built.state_dict(), "hyper_parameters": dict(built.hparams), "hparams_name": "kwargs",
        "pytorch-lightning_version": "2.6.4",
    }  # fmt: skip
    built.on_save_checkpoint(content)
    torch.save(content, path)
    return built


@pytest.mark.parametrize(("build", "kind"), [(model, "DiffusionPipeline"), (latent, "StableDiffusionPipeline")])
def test_the_printed_lines_load_the_same_weights(tmp_path, capsys, build, kind):
    built = saved(build(), tmp_path / "best.ckpt")
    assert main([str(tmp_path / "best.ckpt"), str(tmp_path / "folder")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"from diffusers import {kind}"
    assert len(lines) == 2
    loaded = {}
    exec("\n".join(lines), loaded)
    weights = loaded["pipeline"].unet.state_dict()
    for name, value in built.unet.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=0, rtol=0)
    text = "Cardiomegaly"
    assert loaded["pipeline"].tokenizer(text).input_ids == built.tokenizer(text).input_ids


def test_what_is_wrong_is_told_all_at_once_in_one_line(tmp_path, capsys):
    (tmp_path / "kept.txt").write_text("mine")
    assert main([str(tmp_path / "none.ckpt"), str(tmp_path)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(
        f"mmpds.export: there is no file {tmp_path}/none.ckpt; {tmp_path} exists and is no empty"
    )
    assert said.err.count("\n") == 1
    assert main([str(tmp_path / "kept.txt"), str(tmp_path / "kept.txt")]) == 2
    assert "kept.txt exists and is no empty folder" in capsys.readouterr().err


def test_another_model_s_checkpoint_is_refused(tmp_path, capsys):
    detector = DenseNet121(["Nodule"], growth_rate=4, block_config=[1, 1, 1, 1], init_features=8)
    saved(detector, tmp_path / "best.ckpt")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    for name in ("best.ckpt", "text.ckpt"):
        assert main([str(tmp_path / name), str(tmp_path / "folder")]) == 2
        said = capsys.readouterr().err
        assert f"{name} is no checkpoint of a generator; give the checkpoints/best.ckpt of a run of model=diff" in said
        assert said.count("\n") == 1
    assert not (tmp_path / "folder").exists()


def test_an_empty_folder_may_be_given(tmp_path):
    saved(model(), tmp_path / "best.ckpt")
    (tmp_path / "folder").mkdir()
    assert main([str(tmp_path / "best.ckpt"), str(tmp_path / "folder")]) == 0
    assert (tmp_path / "folder" / "model_index.json").exists()
