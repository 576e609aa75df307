"""Where prompts come from: the study's, the phantom's captions, VQA-RAD, a text file or a list."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

SETS = ("study", "phantom", "vqa_rad")
PHANTOMS = 2000
"""Captions that the set `phantom` has: those of the default data set."""

# Six question-answer pairs, as in the study that this project generalises. Its report quotes only the first of its
# prompts; the others are pairs of VQA-RAD of the same form, with their qid there.
STUDY = (
    "What abnormality is visible in the chest X-ray? Pneumonia",
    "What abnormality is seen in this image? bilateral pleural effusion",  # 2165, chest
    "What is the primary abnormality in this image? ring enhancing lesion in the left occipital lobe",  # 674, head
    "What pathology is seen in this image? right subdural hematoma",  # 1893, head
    "What abnormalities are in the right upper quadrant? Gallstones",  # 266, abdomen
    "What is the pathology? Diverticulitis",  # 1331, abdomen
)


def read_prompts(prompts: str | Sequence[str], root: str | None = None) -> list[tuple[str, str]]:
    """The id and the text of each prompt; ids are unique, the same every time, and fit for file names.

    Args:
        prompts: `study` (ids study-0 to study-5), `phantom` (captions of the default phantoms, by image id), `vqa_rad`
            (question and answer of each row, vqa_rad-QID), the path of a UTF-8 text file with a prompt a line
            (line-00001, …), or a list of texts (prompt-00000, …).
        root: the folder that holds VQA-RAD's public JSON (Lau et al., Sci. Data 2018); for `vqa_rad` alone.

    Raises:
        ValueError: all that is wrong with the prompts, with the cure.
    """
    if not isinstance(prompts, str):
        return _listed(prompts)
    if prompts == "study":
        return [(f"study-{place}", text) for place, text in enumerate(STUDY)]
    if prompts == "phantom":
        from mmpds.data.phantom import Phantom  # imported here: whoever checks the other prompts needs no numpy

        table = Phantom(images=PHANTOMS).table
        return list(zip(table["id"], table["caption"], strict=True))
    if prompts == "vqa_rad":
        return _vqa_rad(root)
    return _lines(prompts)


def read_items(
    prompts: str | Sequence[str], root: str | None = None, count: int | None = None, images_per_prompt: int = 1
) -> list[tuple[str, str]]:
    """The id and the prompt of each image; with several images a prompt, ids end in -0, -1, …

    Args:
        prompts: see `read_prompts`.
        root: see `read_prompts`.
        count: the first so many prompts; None: all.
        images_per_prompt: images of each.

    Raises:
        ValueError: all that is wrong, with the cure.
    """
    wrong = [
        f"data.{name}={value}: give a whole number from 1 up"
        for name, value in {"count": count, "images_per_prompt": images_per_prompt}.items()
        if value is not None and not (isinstance(value, int) and value >= 1)
    ]
    found: list[tuple[str, str]] = []
    try:
        found = read_prompts(prompts, root)
    except ValueError as error:
        wrong.append(str(error))
    if isinstance(count, int) and found and count > len(found):
        wrong.append(f"data.count={count}: there are {len(found)} prompts; give at most {len(found)}, or null")
    if wrong:
        raise ValueError("; ".join(wrong))
    if images_per_prompt == 1:
        return found[:count]
    return [(f"{name}-{image}", text) for name, text in found[:count] for image in range(images_per_prompt)]


def _listed(prompts: Sequence[Any]) -> list[tuple[str, str]]:
    if not prompts:
        raise ValueError("data.prompts=[]: there is nothing to generate; give at least one prompt")
    if wrong := [f"{place} is {text!r}" for place, text in enumerate(prompts) if not isinstance(text, str)]:
        raise ValueError(f"data.prompts: {_some(wrong)}, no text; put each prompt in quotes")
    if empty := [str(place) for place, text in enumerate(prompts) if not text.strip()]:
        raise ValueError(f"data.prompts: prompt {_some(empty)} (from 0) is empty; give a text or leave it out")
    return [(f"prompt-{place:05d}", text.strip()) for place, text in enumerate(prompts)]


def _lines(name: str) -> list[tuple[str, str]]:
    path = Path(name)
    if not path.exists():
        near = get_close_matches(name, SETS, n=1)
        cure = f"did you mean {near[0]}? Else give" if near else f"give {', '.join(SETS)},"
        raise ValueError(f"data.prompts={name}: no such set and no such file; {cure} a text file's path or a list")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"data.prompts={name}: line {line} is not UTF-8; save the file as UTF-8 text") from error
    except OSError as error:
        why = (error.strerror or type(error).__name__).lower()
        raise ValueError(f"data.prompts={name}: {why}; give a text file, a prompt a line") from error
    if not text.strip():
        raise ValueError(f"data.prompts={name}: the file is empty; write a prompt a line")
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if empty := [str(number) for number, line in enumerate(lines, 1) if not line]:
        raise ValueError(f"data.prompts={name}: line {_some(empty)} is empty; give a text or leave the line out")
    return [(f"line-{number:05d}", line) for number, line in enumerate(lines, 1)]


def _vqa_rad(root: str | None) -> list[tuple[str, str]]:
    if root is None:
        raise ValueError("data.root: prompts=vqa_rad needs the folder that holds VQA_RAD Dataset Public.json")
    from mmpds.data.vqa_rad import read_questions  # imported here: it needs pandas

    return [(f"vqa_rad-{row['qid']}", f"{row['question']} {row['answer']}") for row in read_questions(root)]


def _some(items: list[str]) -> str:
    return ", ".join(items[:5]) + (f" and {len(items) - 5} more" if len(items) > 5 else "")
