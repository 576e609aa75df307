"""What is computed once and kept, up to a limit of memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

from torch import Tensor

LIMIT = 4 * 2**30
"""Bytes that one memo of one rank may hold: Stable Diffusion's embeddings of some 17,000 captions."""


class Memo:
    """Tensors by key, on the CPU, each computed once; those beyond the limit are computed anew each time.

    Args:
        limit: bytes.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.left = limit
        self._kept: dict[Hashable, Tensor] = {}

    def __len__(self) -> int:
        """How many tensors are kept."""
        return len(self._kept)

    def of(self, keys: Sequence[Hashable], compute: Callable[[list[int]], Tensor]) -> list[Tensor]:
        """The tensor of each key.

        Args:
            keys: equal ones stand for equal tensors.
            compute: makes those of some positions of `keys`, stacked.
        """
        places = {key: place for place, key in enumerate(keys)}
        new = [place for key, place in places.items() if key not in self._kept]
        made = dict(zip([keys[place] for place in new], compute(new).detach().cpu(), strict=True)) if new else {}
        for key, tensor in made.items():
            if (size := tensor.nbytes) <= self.left:
                self._kept[key] = tensor.clone()  # not a view that holds the whole batch
                self.left -= size
        return [made[key] if key in made else self._kept[key] for key in keys]
