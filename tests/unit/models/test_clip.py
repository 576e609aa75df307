"""CLIP, on networks of a few thousand weights."""

import gzip
import json
from functools import partial

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.models import vocabulary
from mmpds.models.clip import Clip
from tests.conftest import quiet_trainer

FINDINGS = ["Pneumonia", "Cardiomegaly"]
VISION = {
    "patch_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
TEXT = VISION | {"vocab_size": 600, "max_position_embeddings": 40}
del TEXT["patch_size"]
TEXTS = ["Pneumonia in the left lung.", "Enlarged heart.", "No acute finding."]


def model(**arguments):
    torch.manual_seed(0)
    built = Clip(**{"findings": FINDINGS, "size": 32, "vision": VISION, "text": TEXT, "width": 8} | arguments)
    if built.tokenizer is None:
        built.tokenizer = vocabulary.learn(TEXTS, 600, 40)
    return built.eval()


def phantom(**arguments):
    settings = {"size": 32, "batch_size": 8, "cache_dir": None, "augment": False, "findings": FINDINGS} | arguments
    return ImageData(partial(Phantom, images=60), **settings)


def images(count=3, channels_size=32):
    return torch.rand(count, 1, channels_size, channels_size, generator=torch.Generator().manual_seed(1))


def test_what_sees_is_compiled():
    seen, clip = [], model()

    def backend(graph, inputs):
        seen.append(len(inputs))
        return graph

    before = clip.embed_images(images())
    clip.compile(backend=backend)
    assert torch.allclose(clip.embed_images(images()), before)
    assert seen


@pytest.mark.parametrize("stem", ["patch", "convolutions"])
def test_images_and_texts_are_unit_vectors_of_one_space(stem):
    clip = model(stem=stem)
    with torch.no_grad():
        image, text = clip.embed_images(images()), clip.embed_texts(TEXTS)
    assert image.shape == text.shape == (3, 8)
    assert torch.allclose(image.norm(dim=1), torch.ones(3))
    assert torch.allclose(text.norm(dim=1), torch.ones(3))


def test_a_text_means_the_same_beside_a_longer_one():
    clip = model()
    with torch.no_grad():
        assert torch.allclose(clip.embed_texts(TEXTS)[1], clip.embed_texts(TEXTS[1:2])[0], atol=1e-6)


def test_images_of_another_size_are_told_with_the_cure():
    with pytest.raises(ValueError, match=r"data\.size=64.*data\.size=32"):
        model().embed_images(images(channels_size=64))


@pytest.mark.parametrize("loss", ["info_nce", "siglip"])
def test_training_matches_images_and_reports(loss, tmp_path):
    clip = model(loss=loss, learning_rate=3e-3)
    clip._tokenizer = None
    data = phantom()
    run = quiet_trainer(tmp_path, max_epochs=12, precision="bf16-mixed")
    first = {}
    clip.on_train_batch_end = lambda out, *_: first.setdefault("loss", float(out["loss"]))
    run.fit(clip, data)
    assert float(run.callback_metrics["train/loss"]) < 0.8 * first["loss"]
    assert len(clip.tokenizer) > 512  # learnt from the captions


def test_a_checkpoint_loads_alone_and_gives_the_same_probabilities(tmp_path):
    clip = model()
    data, run = phantom(), quiet_trainer(tmp_path, max_epochs=1)
    run.fit(clip, data)
    run.save_checkpoint(tmp_path / "c.ckpt")
    again = Clip.load_from_checkpoint(tmp_path / "c.ckpt", map_location="cpu", weights_only=True).eval()
    clip.eval()
    with torch.no_grad():
        assert torch.equal(again.probabilities(images()), clip.probabilities(images()))
    assert again.fingerprint() == clip.fingerprint()
    assert again.fingerprint() != model().fingerprint()


def test_other_sentences_may_be_given_for_a_checkpoint(tmp_path):
    clip = model()
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.fit(clip, phantom())
    run.save_checkpoint(tmp_path / "c.ckpt")
    asked = {"zero_shot": {"classes": {"Pneumonia": {"positive": "enlarged heart"}}}, "threshold": {"rule": "f1"}}
    again = Clip.load_from_checkpoint(tmp_path / "c.ckpt", weights_only=True, **Clip.restated(asked))
    assert again.sentences["Pneumonia"].positive == ["enlarged heart"]
    assert not again.threshold.fitted  # those of the checkpoint are of other sentences
    again = Clip.load_from_checkpoint(tmp_path / "c.ckpt", weights_only=True, zero_shot={})
    assert torch.equal(again.threshold.value, clip.threshold.value)


def test_training_on_changes_what_sentences_mean(tmp_path):
    """Directions that were computed before a step are not used after it."""
    clip = model()
    with torch.no_grad():
        before = clip.probabilities(images())
        clip.clip.text_projection.weight.neg_()
        assert torch.equal(clip.probabilities(images()), before)  # kept while it only judges
        clip.train()
        assert not torch.allclose(clip.eval().probabilities(images()), before)


def test_findings_that_exclude_one_another_add_up_to_one():
    prob = model(zero_shot={"exclusive": True}).probabilities(images())
    assert torch.allclose(prob.sum(1), torch.ones(3))


def test_the_exported_folder_is_transformers_own_and_is_read_back(tmp_path):
    clip = model(vision=VISION | {"num_channels": 3})
    clip.save_pretrained(tmp_path / "clip")
    theirs, tokenizer = CLIPModel.from_pretrained(tmp_path / "clip"), CLIPTokenizer.from_pretrained(tmp_path / "clip")
    again = Clip(findings=FINDINGS, pretrained=str(tmp_path / "clip")).eval()
    with torch.no_grad():
        grey = images().expand(-1, 3, -1, -1)
        scaled = (grey - clip.image_mean) / clip.image_std
        tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
        out = theirs(input_ids=tokens.input_ids, pixel_values=scaled)
        assert torch.allclose(out.image_embeds, clip.embed_images(images()), atol=1e-6)
        assert torch.allclose(out.text_embeds, clip.embed_texts(TEXTS), atol=1e-6)
        assert torch.equal(again.embed_images(images()), clip.embed_images(images()))
        assert torch.equal(again.embed_texts(TEXTS), clip.embed_texts(TEXTS))
    assert again.hparams["pretrained"] is None  # its checkpoint needs the folder no more
    json.dumps(dict(again.hparams))


def test_pretrained_weights_keep_their_own_stem(tmp_path):
    """The yaml's default stem is of training from scratch."""
    clip = model(vision=VISION | {"num_channels": 3})
    clip.save_pretrained(tmp_path / "clip")
    again = Clip(findings=FINDINGS, pretrained=str(tmp_path / "clip"), stem="convolutions").eval()
    with torch.no_grad():
        assert torch.equal(again.embed_images(images()), clip.embed_images(images()))
    assert again.hparams["stem"] == "patch"


def test_a_stem_that_transformers_does_not_know_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="stem"):
        model(stem="convolutions").save_pretrained(tmp_path / "no")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"loss": "triplet"}, "loss=triplet"),
        ({"stem": "convolutions", "vision": VISION | {"patch_size": 6}, "size": 36}, "power of two"),
        ({"pretrained": "/nowhere"}, r"model\.pretrained"),
        ({"tokenizer": "/nowhere.gz"}, r"model\.tokenizer"),
        ({"zero_shot": {"templates": ["none"]}}, r"zero_shot\.templates"),
    ],
)
def test_a_wrong_argument_is_told_with_its_cure(wrong, told):
    with pytest.raises(ValueError, match=told):
        model(**wrong)


def test_captions_that_are_all_alike_teach_nothing(tmp_path):
    data = phantom()
    data.setup("fit")
    data.images["train"].caption = ["a report"] * len(data.images["train"])
    with pytest.raises(ValueError, match="captions to tell apart"):
        quiet_trainer(tmp_path, max_epochs=1).fit(model(), data)


def test_weights_of_a_checkpoint_serve_other_findings(tmp_path):
    clip = model()
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.fit(clip, phantom())
    run.save_checkpoint(tmp_path / "c.ckpt")
    other = model(findings=["Head"])
    other.load_weights(str(tmp_path / "c.ckpt"))
    assert other.fingerprint() == clip.fingerprint()
    (tmp_path / "half.ckpt").write_bytes((tmp_path / "c.ckpt").read_bytes()[:900])
    with pytest.raises(ValueError, match="init_from"):
        other.load_weights(str(tmp_path / "half.ckpt"))


def test_openai_s_file_of_merges_is_read_as_they_do(tmp_path):
    """A file in the form of the published one; the real one is read in tests/real_data."""
    letters = list(bytes_to_unicode().values())
    pairs = [f"{a} {b}" for a in letters for b in letters]  # each of a piece that there is
    merges = ["p n", "pn e", "pne u</w>", *(pair for pair in pairs if pair != "p n")][: vocabulary.MERGES]
    file = tmp_path / "merges.txt.gz"
    file.write_bytes(gzip.compress("\n".join(["#version", *merges, "x y", "left over"]).encode()))
    tokenizer = vocabulary.published(str(file), 20)
    assert tokenizer.tokenize("pneu") == ["pneu</w>"]
    assert tokenizer.model_max_length == 20
