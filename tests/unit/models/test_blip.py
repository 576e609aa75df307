"""BLIP, on networks of a few thousand weights: captions and answers, from scratch, pretrained, fine-tuned, kept."""

import json
from functools import partial
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from transformers import BlipForConditionalGeneration, BlipForQuestionAnswering

from mmpds.callbacks.texts import Texts
from mmpds.data.module import ImageData
from mmpds.data.phantom import Phantom
from mmpds.data.questions import QuestionData
from mmpds.models import vocabulary, wordpiece
from mmpds.models.blip import Blip
from mmpds.models.blip_layers import chunked_attention
from mmpds.models.blip_vqa import BlipVqa
from mmpds.models.clip import Clip
from tests.conftest import quiet_trainer

VISION = {"patch_size": 8, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {
    "vocab_size": 300, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 24,
}  # fmt: skip
TEXTS = ["Is there evidence of pneumonia?", "Is this normal?", "Which side?", "yes no left right lung heart"]
QUESTIONS = [["Is there evidence of pneumonia in the left lung?", "Which side?"], [], ["Is this normal?"]]


def model(kind=BlipVqa, sharp=6, **arguments):
    torch.manual_seed(0)
    built = kind(**{"size": 32, "vision": VISION, "text": TEXT, "width": 16, "longest": 8} | arguments)
    if built.tokenizer is None:
        built.tokenizer = wordpiece.learn(TEXTS, 300, 24)
    sharpen(built, sharp)
    return built.eval()


def sharpen(built, factor):
    """Random weights that look at what they are given: the usual initial ones write the same for every image."""
    with torch.no_grad():
        for name, weight in built.blip.named_parameters():
            if weight.ndim > 1 and "embeddings" not in name:
                weight.mul_(factor)


def images(count=3, size=32):
    return torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(1))


def data(kind=QuestionData, **arguments):
    settings = {"size": 32, "batch_size": 8, "cache_dir": None, "augment": False} | arguments
    return kind(partial(Phantom, images=60), **settings)


def plain(blip, image, question):
    """Transformers' own `generate`, one image and one question at a time."""
    pixels = ((image - blip.image_mean) / blip.image_std).expand(-1, 3, -1, -1)
    asked = {}
    if question is not None:
        tokens = blip.tokenizer([question], return_tensors="pt")
        asked = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    tokens = blip.blip.generate(
        pixel_values=pixels, max_new_tokens=blip.hparams["longest"], do_sample=False, num_beams=1, **asked
    )
    return wordpiece.written(blip.tokenizer, tokens.tolist())[0]


def test_answers_are_those_of_a_plain_loop_one_image_at_a_time():
    blip, image = model(), images()
    pairs = [(place, question) for place, questions in enumerate(QUESTIONS) for question in questions]
    expected = [plain(blip, image[place : place + 1], question) for place, question in pairs]
    assert blip.answer(image, QUESTIONS) == expected
    assert len(set(expected)) > 1  # they depend on what is asked


def test_captions_are_those_of_a_plain_loop_one_image_at_a_time():
    blip, image = model(Blip), images(6)
    expected = [plain(blip, image[place : place + 1], None) for place in range(6)]
    assert blip.test_step({"image": image, "index": torch.arange(6)}, 0)["text"] == expected
    assert len(set(expected)) > 1


def test_texts_that_end_early_leave_the_batch():
    """The end is made likely, so that texts of one batch have different lengths."""
    blip = model(Blip, longest=20)
    with torch.no_grad():
        blip.blip.text_decoder.cls.predictions.bias[blip.tokenizer.sep_token_id] += 0.04
    image = images(8)
    expected = [plain(blip, image[place : place + 1], None) for place in range(8)]
    assert blip.test_step({"image": image, "index": torch.arange(8)}, 0)["text"] == expected
    assert len({len(text) for text in expected}) > 1


def test_an_image_is_seen_once_for_all_its_questions():
    blip, seen = model(), []
    blip.blip.vision_model.register_forward_hook(lambda module, given, out: seen.append(out.last_hidden_state.shape))
    blip.answer(images(), [["Which side?"] * 5, ["Is this normal?"], []])
    assert seen == [(3, 17, 16)]


def test_fused_attention_is_that_of_transformers():
    from transformers.models.blip.modeling_blip import BlipAttention

    blip, image = model(), images()
    ours = blip.see(image)
    for layer in blip.blip.vision_model.encoder.layers:
        layer.self_attn.__class__ = BlipAttention
    assert torch.allclose(blip.see(image), ours, atol=1e-5)


def test_chunked_attention_is_that_of_pytorch():
    states = torch.randn(3, 5, 2, 65, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    most = 3 * 65**2 // torch.get_num_threads()  # of ten, so that the last chunk is a smaller one
    with mock.patch("mmpds.models.blip_layers.SCORES", most):
        found = chunked_attention(*states)
    assert torch.allclose(found.float(), F.scaled_dot_product_attention(*states.float()), atol=0.02)


def test_a_blip_of_bfloat16_sees_the_same_with_chunked_attention():
    blip, image = model(sharp=2).to(torch.bfloat16), images().bfloat16()
    with torch.inference_mode():
        seen = []
        for chunked in (True, False):
            spy = mock.Mock(wraps=chunked_attention)
            with mock.patch.multiple("mmpds.models.blip_layers", CHUNKED=chunked, chunked_attention=spy):
                seen.append(blip.see(image).float())
            assert spy.called == chunked
    assert F.cosine_similarity(*seen, dim=-1).min() > 0.99


def test_what_pads_a_question_is_not_attended_to():
    blip = model(sharp=2)
    with torch.no_grad():
        long, short = "Is there evidence of pneumonia in the left lung?", "Which side?"
        seen = blip.see(images(1))
        beside, alone = blip.read(seen, [[long, short]]), blip.read(seen, [[short]])
        losses = [blip.losses(["left lung"], states[-1:], there[-1:])[0] for states, there in (beside, alone)]
    assert beside[1].shape[1] > alone[1].shape[1]
    assert torch.allclose(*losses, atol=1e-5)


def test_images_of_another_size_are_told_with_the_cure():
    with pytest.raises(ValueError, match=r"data\.size=64.*data\.size=32"):
        model().see(images(size=64))


@pytest.mark.parametrize("kind", [Blip, BlipVqa])
def test_training_learns_and_a_checkpoint_loads_alone(kind, tmp_path):
    torch.manual_seed(0)
    settings = {"vision": VISION, "text": TEXT, "width": 16, "stem": "convolutions", "learning_rate": 3e-3}
    blip, run = kind(size=32, **settings), quiet_trainer(tmp_path, max_epochs=12, precision="bf16-mixed")
    blip.on_train_batch_end = lambda out, *_: first.setdefault("loss", float(out["loss"]))
    first = {}
    run.fit(blip, data(QuestionData if kind is BlipVqa else ImageData))
    assert float(run.callback_metrics["train/loss"]) < 0.8 * first["loss"]
    assert {"val/loss"} | ({"val/accuracy"} if kind is BlipVqa else set()) <= set(run.callback_metrics)
    run.save_checkpoint(tmp_path / "c.ckpt")
    again = kind.load_from_checkpoint(tmp_path / "c.ckpt", map_location="cpu", weights_only=True).eval()
    blip.eval()
    with torch.no_grad():
        assert torch.equal(again.see(images()), blip.see(images()))
    assert again.fingerprint() == blip.fingerprint()
    json.dumps(dict(again.hparams))
    other = kind(size=32, **settings)
    assert other.load_weights(str(tmp_path / "c.ckpt")) == []
    assert other.fingerprint() == blip.fingerprint()


def test_padding_and_the_number_of_ranks_change_no_loss():
    blip = model(sharp=2)
    batch = next(iter(data_of("val")))
    losses, tokens = blip.batch_losses(batch)
    parts = [blip.batch_losses({n: v[i : i + 1] for n, v in batch.items()}) for i in range(len(batch["index"]))]
    assert torch.allclose(losses, torch.cat([part[0] for part in parts]), atol=1e-4)
    assert torch.equal(tokens, torch.cat([part[1] for part in parts]))
    batch["index"][0] = -1
    assert blip.test_step(batch, 0)["row"] == [row for rows in batch["asked"][1:] for row in rows]


def data_of(split):
    module = data()
    module.setup("fit")
    return module.eval_dataloader(split)


@pytest.mark.parametrize(
    ("kind", "theirs"), [(Blip, BlipForConditionalGeneration), (BlipVqa, BlipForQuestionAnswering)]
)
def test_the_exported_folder_is_transformers_own_and_is_read_back(kind, theirs, tmp_path):
    blip = model(kind)
    blip.save_pretrained(tmp_path / "blip")
    theirs.from_pretrained(tmp_path / "blip")
    again = kind(pretrained=str(tmp_path / "blip"), longest=8).eval()
    with torch.no_grad():
        assert torch.equal(again.see(images()), blip.see(images()))
    assert again.fingerprint() == blip.fingerprint()
    assert again.hparams["pretrained"] is None  # its checkpoint needs the folder no more
    assert again.tokenizer.get_vocab() == blip.tokenizer.get_vocab()
    scratch = kind(pretrained=str(tmp_path / "blip"), longest=8, stem="convolutions").eval()  # as the yaml has it
    with torch.no_grad():
        assert torch.equal(scratch.see(images()), blip.see(images()))
    assert scratch.hparams["stem"] == "patch"


def test_lora_trains_little_and_is_merged_when_exported(tmp_path):
    model().save_pretrained(tmp_path / "blip")
    blip = BlipVqa(pretrained=str(tmp_path / "blip"), lora_rank=2, longest=8, learning_rate=1e-2)
    trained = sum(p.numel() for p in blip.parameters() if p.requires_grad)
    assert 0 < trained < 0.2 * sum(p.numel() for p in blip.parameters())
    before = {name: value.clone() for name, value in blip.blip.named_parameters() if not value.requires_grad}
    run = quiet_trainer(tmp_path, max_epochs=1)
    run.fit(blip, data())
    assert all(torch.equal(dict(blip.blip.named_parameters())[name], value) for name, value in before.items())
    run.save_checkpoint(tmp_path / "c.ckpt")
    again = BlipVqa.load_from_checkpoint(tmp_path / "c.ckpt", weights_only=True).eval()
    again.save_pretrained(tmp_path / "merged")
    merged = BlipVqa(pretrained=str(tmp_path / "merged"), longest=8).eval()
    with torch.no_grad():
        ours, theirs = (one.read(one.see(images()), QUESTIONS)[0] for one in (again, merged))
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert again.answer(images(), QUESTIONS) == merged.answer(images(), QUESTIONS)


def test_the_tower_of_a_clip_of_ours_is_a_start(tmp_path):
    torch.manual_seed(0)
    sizes = VISION | {"hidden_size": 16}
    clip = Clip(findings=["Nodule"], size=32, vision=sizes, text=TEXT | {"hidden_size": 16, "vocab_size": 600}, width=8,
                stem="convolutions").eval()  # fmt: skip
    clip.tokenizer = vocabulary.learn(TEXTS, 600, 24)
    run = quiet_trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    run.fit(clip, data(ImageData, findings=["Nodule"]))
    run.save_checkpoint(tmp_path / "clip.ckpt")
    blip = model(stem="convolutions", vision=VISION | {"hidden_act": "quick_gelu"})
    blip.load_weights(str(tmp_path / "clip.ckpt"))
    clip.eval()
    with torch.no_grad():
        scaled = (images() - clip.image_mean) / clip.image_std
        theirs = clip.clip.vision_model(pixel_values=scaled).last_hidden_state
        theirs = clip.clip.vision_model.post_layernorm(theirs)
        assert torch.allclose(blip.see(images()), theirs, atol=1e-5)
    with pytest.raises(ValueError, match=r"init_from=.*clip\.ckpt"):
        model(stem="patch").load_weights(str(tmp_path / "clip.ckpt"))


def test_an_answering_model_starts_from_a_captioner(tmp_path):
    captioner = model(Blip)
    kept = {"state_dict": captioner.state_dict(), "vocabulary": wordpiece.state(captioner.tokenizer)}
    torch.save(kept, tmp_path / "c")
    blip = model(text=TEXT)
    blip.load_weights(str(tmp_path / "c"))
    with torch.no_grad():
        assert torch.equal(blip.see(images()), captioner.see(images()))


def test_a_captioner_takes_the_tower_of_an_answering_model_and_learns_its_own_words(tmp_path):
    answering = model()
    kept = {"state_dict": answering.state_dict(), "vocabulary": wordpiece.state(answering.tokenizer)}
    torch.save(kept, tmp_path / "a")
    captioner = model(Blip)
    captioner._tokenizer = None
    torch.nn.init.zeros_(captioner.blip.vision_model.post_layernorm.weight)
    captioner.load_weights(str(tmp_path / "a"))
    with torch.no_grad():
        assert torch.equal(captioner.see(images()), answering.see(images()))
    assert captioner.tokenizer is None


def test_a_file_of_another_network_is_refused(tmp_path):
    torch.save({"state_dict": {"backbone.features.conv0.weight": torch.zeros(1)}}, tmp_path / "d.ckpt")
    with pytest.raises(ValueError, match=r"init_from=.*neither BLIP nor CLIP"):
        model().load_weights(str(tmp_path / "d.ckpt"))


def test_a_vocabulary_that_does_not_fit_is_told():
    with pytest.raises(ValueError, match=r"vocab_size=300.*pieces"):
        model().tokenizer = wordpiece.restored({"pieces": [str(number) for number in range(400)], "length": 9})


def test_a_test_asks_each_question_with_a_blank_and_with_another_s_image(tmp_path):
    texts, blip, module = Texts(controls=True), model(sharp=2), data(balance=True)
    quiet_trainer(tmp_path, callbacks=[texts]).test(blip, module, verbose=False)
    questions = module.images["test"].questions
    assert set(texts.written) == {"prediction", "blank", "shuffled"}
    assert all(len(found) == len(questions) for found in texts.written.values())
    same = questions.assign(text=texts.written["blank"]).groupby("question")["text"].nunique()
    assert (same == 1).all()  # nothing but the question decides
    images_of = module.images["test"]
    first = questions[questions["row"] == 0]
    expected = blip.answer(images_of_row(images_of, 0), [first["question"].tolist()])
    assert [texts.written["prediction"][row] for row in first.index] == expected
    quiet_trainer(tmp_path, callbacks=[Texts()]).test(blip, module, verbose=False)


def images_of_row(images_of, row):
    from mmpds.data.sampling import Draw

    return images_of[Draw(row)]["image"][None]
