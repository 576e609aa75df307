"""BERT's WordPiece vocabulary, published or learnt from a corpus, as BLIP reads and writes it."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers, trainers
from tokenizers.models import WordPiece
from transformers import BertTokenizer

MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
START = "[DEC]"
"""What a text that is written begins with; the published vocabulary lacks it."""
WRITABLE = string.ascii_lowercase + string.digits + string.punctuation
"""Letters that every vocabulary has."""
SMALLEST = 256


def learn(texts: Sequence[str], size: int, length: int) -> BertTokenizer:
    """A tokenizer whose vocabulary of at most `size` pieces is learnt from `texts` (Schuster & Nakajima 2012).

    Args:
        texts: the corpus; its order does not matter.
        size: pieces at most, marks included, from `SMALLEST` up.
        length: tokens of a text at most, start and end included.

    Raises:
        ValueError: `size` is too small for the letters of a corpus.
    """
    if size < SMALLEST:
        raise ValueError(f"vocabulary={size}: give {SMALLEST} or more, so that words can be written")
    learner = Tokenizer(WordPiece(unk_token=MARKS[1]))
    learner.normalizer = normalizers.BertNormalizer(lowercase=True)
    learner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    split = [learner.normalizer.normalize_str(text) for text in texts]
    letters = sorted(set("".join([*split, *WRITABLE])) - set(string.whitespace))
    trainer = trainers.WordPieceTrainer(  # the letters' own order would be another each time, and so would the pieces
        vocab_size=size - 1, show_progress=False, initial_alphabet=letters,
        special_tokens=[*MARKS, *letters, *(f"##{letter}" for letter in letters)],
    )  # fmt: skip
    learner.train_from_iterator(sorted(texts), trainer)
    known = learner.get_vocab()
    return restored({"pieces": sorted(known, key=known.__getitem__), "length": length})


def published(source: str, length: int) -> BertTokenizer:
    """BERT's own vocabulary: of a folder of BertTokenizer, or of a file with a piece a line (vocab.txt).

    Args:
        source: the folder or the file.
        length: tokens of a text at most, start and end included.

    Raises:
        ValueError: it is neither.
    """
    try:
        if Path(source).is_dir():
            read = BertTokenizer.from_pretrained(source)
            return restored({"pieces": state(read)["pieces"], "length": length})
        pieces = Path(source).read_text(encoding="utf-8").splitlines()
        if missing := [mark for mark in MARKS if mark not in pieces]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return restored({"pieces": pieces, "length": length})
    except (OSError, ValueError, KeyError) as error:
        cure = "give a folder of BertTokenizer, or its vocab.txt"
        raise ValueError(f"model.tokenizer={source}: {cure} ({' '.join(str(error).split())[:200]})") from error


def restored(state: dict[str, Any]) -> BertTokenizer:
    """The tokenizer of a `state`; `START`, its bos token, is added where the pieces lack it."""
    pieces = list(dict.fromkeys([*state["pieces"], START]))
    vocab = {piece: place for place, piece in enumerate(pieces)}
    return BertTokenizer(vocab=vocab, model_max_length=state["length"], bos_token=START)


def state(tokenizer: BertTokenizer) -> dict[str, Any]:
    """What a checkpoint keeps of a tokenizer: strings and a number."""
    known = tokenizer.get_vocab()
    return {"pieces": sorted(known, key=known.__getitem__), "length": tokenizer.model_max_length}


def written(tokenizer: BertTokenizer, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Texts of rows of tokens, lower case; marks left out, punctuation set as it is written: `left-sided, 5.6 cm`."""
    known = len(tokenizer)  # a network may have more places than its vocabulary has pieces
    rows = [[token for token in row if token < known] for row in tokens]
    texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return [_set(text) for text in texts]


def _set(text: str) -> str:
    text = re.sub(r"(?<=\w) ?([-/']) ?(?=\w)", r"\1", text)
    text = re.sub(r"(?<=\d) ?([.,:]) ?(?=\d)", r"\1", text)
    return re.sub(r" +([.,;:?!%)])", r"\1", text).replace("( ", "(").strip()
