import pytest

from mmpds.models import vocabulary

TEXTS = ["Chest X-ray, PA view. Small left pleural effusion.", "Axial CT of the head. No acute finding."] * 3


def test_a_text_of_the_corpus_is_written_in_whole_words():
    tokenizer = vocabulary.learn(TEXTS, 700, 32)
    tokens = tokenizer.tokenize(TEXTS[0])
    assert "effusion</w>" in tokens
    assert len(tokenizer) <= 700
    assert tokenizer.decode(tokenizer(TEXTS[0]).input_ids, skip_special_tokens=True).startswith("chest x - ray")


def test_any_other_text_can_be_written_too():
    tokenizer = vocabulary.learn(TEXTS, vocabulary.SMALLEST, 32)
    tokens = tokenizer("Größe 你好 🫁").input_ids
    assert tokenizer.unk_token_id not in tokens[1:-1]
    assert len(set(tokens)) > 5


def test_the_order_of_the_corpus_does_not_matter():
    one, other = (vocabulary.state(vocabulary.learn(texts, 700, 32)) for texts in (TEXTS, TEXTS[::-1]))
    assert one == other


def test_a_state_restores_the_tokenizer(tmp_path):
    tokenizer = vocabulary.learn(TEXTS, 700, 32)
    again = vocabulary.restored(vocabulary.state(tokenizer))
    assert vocabulary.state(again) == vocabulary.state(tokenizer)
    assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
    assert again.model_max_length == 32


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary=300: give 514 or more"):
        vocabulary.learn(TEXTS, 300, 32)
