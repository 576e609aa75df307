"""CLIP's published vocabulary."""

from mmpds.models import vocabulary


def test_the_published_merges_give_the_published_tokens(real_data):
    """Ids as OpenAI's own tokenizer gives them."""
    tokenizer = vocabulary.published(str(real_data / "tokenizers" / "bpe_simple_vocab_16e6.txt.gz"), 77)
    assert len(tokenizer) == 49408
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.tokenize("Pneumothorax!")[0].startswith("pne")
    again = vocabulary.restored(vocabulary.state(tokenizer))
    text = "Left-sided pleural effusion; 3 cm."
    assert again(text).input_ids == tokenizer(text).input_ids
