"""Reuse of deep features between denoising steps: DeepCache (Ma et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from diffusers import UNet2DConditionModel


@contextmanager
def feature_cache(unet: UNet2DConditionModel, interval: int) -> Iterator[None]:
    """Within it, only every `interval`-th call of the UNet computes its deep blocks; those between reuse their output.

    Deep is all but the outermost down and up block: what it computes changes least from one step to the next (Ma et
    al., section 3.2). The calls within one `with` must be successive steps of one batch. The first call is whole.

    Args:
        unet: it is as it was afterwards, also after an exception.
        interval: 1 = every call is whole, so nothing changes.
    """
    if interval == 1:
        yield
        return
    network: Any = unet
    deep = [*network.down_blocks[1:], network.mid_block, *network.up_blocks[:-1]]
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    def cached(forward: Callable[..., Any]) -> Callable[..., Any]:
        output: Any = None

        def reuse(*args: Any, **kwargs: Any) -> Any:
            nonlocal output
            if calls % interval == 1:
                output = forward(*args, **kwargs)
            return output

        return reuse

    counter = network.register_forward_pre_hook(count)
    # the block's own forward, not a module around it: the UNet reads blocks' attributes, state dicts keep their keys
    own = [block.__dict__.get("forward") for block in deep]
    for block in deep:
        block.forward = cached(block.forward)
    try:
        yield
    finally:
        counter.remove()
        for block, forward in zip(deep, own, strict=True):
            del block.forward
            if forward is not None:
                block.forward = forward
