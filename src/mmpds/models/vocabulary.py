"""A byte-level BPE vocabulary learnt from a corpus, as CLIP's own was."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers, trainers
from tokenizers.models import BPE
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

START, END = "<|startoftext|>", "<|endoftext|>"
MERGES = 49152 - 256 - 2
"""Of the merges in OpenAI's file, those that CLIP uses."""
SMALLEST = 2 * 256 + 2
"""Every byte, within and at the end of a word, and the two marks: any text can be written with these."""


def learn(texts: Sequence[str], size: int, length: int) -> CLIPTokenizer:
    """A tokenizer whose vocabulary of at most `size` pieces is learnt from `texts` (Sennrich et al. 2016).

    Args:
        texts: the corpus; its order does not matter.
        size: pieces at most, from `SMALLEST` up.
        length: tokens of a text at most, start and end included.

    Raises:
        ValueError: `size` cannot hold every byte.
    """
    if size < SMALLEST:
        raise ValueError(f"vocabulary={size}: give {SMALLEST} or more, so that any text can be written")
    rules: Any = CLIPTokenizer().backend_tokenizer  # how CLIP normalises and splits
    learner = Tokenizer(BPE(end_of_word_suffix="</w>"))
    learner.normalizer, learner.pre_tokenizer = rules.normalizer, rules.pre_tokenizer
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*letters, *(letter + "</w>" for letter in letters), START, END],
        end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False,
    )  # fmt: skip
    learner.train_from_iterator(sorted(texts), trainer)
    model = json.loads(learner.to_str())["model"]
    return restored({"vocab": model["vocab"], "merges": [" ".join(pair) for pair in model["merges"]], "length": length})


def published(file: str, length: int) -> CLIPTokenizer:
    """CLIP's own vocabulary: of a folder of CLIPTokenizer, or of OpenAI's file of merges.

    Args:
        file: the folder, or bpe_simple_vocab_16e6.txt.gz.
        length: tokens of a text at most, start and end included.

    Raises:
        ValueError: it is neither.
    """
    try:
        if Path(file).is_dir():
            found: CLIPTokenizer = CLIPTokenizer.from_pretrained(file, model_max_length=length)
            return found
        lines = gzip.decompress(Path(file).read_bytes()).decode().split("\n")
        merges = lines[1 : MERGES + 1]  # the file goes on with merges that CLIP does not use
        letters = list(bytes_to_unicode().values())  # type: ignore[no-untyped-call]
        pieces = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
        if len(merges) != MERGES or any(merge.count(" ") != 1 for merge in merges):
            raise ValueError(f"it has no {MERGES:,} merges")
        vocab = {piece: place for place, piece in enumerate([*pieces, START, END])}
        return restored({"vocab": vocab, "merges": merges, "length": length})
    except (OSError, ValueError, KeyError) as error:
        cure = "give a folder of CLIPTokenizer, or bpe_simple_vocab_16e6.txt.gz"
        raise ValueError(f"model.tokenizer={file}: {cure} ({' '.join(str(error).split())[:200]})") from error


def too_long(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> dict[str, int]:
    """The texts beyond the tokenizer's limit, with their number of tokens, start and end included."""
    lengths = {text: len(tokenizer(text, verbose=False).input_ids) for text in dict.fromkeys(texts)}
    return {text: length for text, length in lengths.items() if length > tokenizer.model_max_length}


def refuse_long(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> None:
    """Let no prompt be cut.

    Raises:
        ValueError: naming those that would be.
    """
    if long := too_long(tokenizer, prompts):
        shown = "; ".join(f"{prompt[:60]!r}… has {tokens}" for prompt, tokens in list(long.items())[:3])
        count = f"{len(long)} prompts are" if len(long) > 1 else "1 prompt is"
        raise ValueError(
            f"data.prompts: {count} longer than the text encoder's {tokenizer.model_max_length} tokens, and would be "
            f"cut: {shown}; shorten them"
        )


def restored(state: dict[str, Any]) -> CLIPTokenizer:
    """The tokenizer of a `state`."""
    merges: Any = [tuple(merge.split(" ")) for merge in state["merges"]]
    return CLIPTokenizer(vocab=state["vocab"], merges=merges, model_max_length=state["length"])


def state(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """What a checkpoint keeps of a tokenizer: strings, numbers, lists and dictionaries."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {"vocab": model["vocab"], "merges": merges, "length": tokenizer.model_max_length}
