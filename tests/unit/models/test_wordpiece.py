"""BERT's vocabulary, learnt and published."""

import pytest

from mmpds.models import wordpiece

TEXTS = ["Left-sided pneumothorax, 5.6 cm (small)", "Don't: a T2-weighted X-ray of 10:30?"]


def test_a_learnt_vocabulary_writes_what_it_read():
    tokenizer = wordpiece.learn(TEXTS, 400, 64)
    assert wordpiece.written(tokenizer, tokenizer(TEXTS).input_ids) == [text.lower() for text in TEXTS]
    assert wordpiece.learn(TEXTS[::-1], 400, 64).get_vocab() == tokenizer.get_vocab()
    assert tokenizer.pad_token_id == 0
    assert tokenizer.bos_token_id == len(tokenizer) - 1


def test_a_state_restores_it():
    tokenizer = wordpiece.learn(TEXTS, 400, 64)
    again = wordpiece.restored(wordpiece.state(tokenizer))
    assert again(TEXTS).input_ids == tokenizer(TEXTS).input_ids
    assert again.model_max_length == 64


def test_a_folder_and_a_file_are_read(tmp_path):
    tokenizer = wordpiece.learn(TEXTS, 400, 64)
    tokenizer.save_pretrained(tmp_path / "folder")
    pieces = wordpiece.state(tokenizer)["pieces"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces[:-1]) + "\n")
    for source in ("folder", "vocab.txt"):
        assert wordpiece.published(str(tmp_path / source), 64)(TEXTS).input_ids == tokenizer(TEXTS).input_ids


@pytest.mark.parametrize("content", [None, "a\nb\n"])
def test_what_is_no_vocabulary_is_told(tmp_path, content):
    if content:
        (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises(ValueError, match=r"model\.tokenizer=.*vocab\.txt"):
        wordpiece.published(str(tmp_path / "vocab.txt"), 64)
    with pytest.raises(ValueError, match="256 or more"):
        wordpiece.learn(TEXTS, 100, 64)
