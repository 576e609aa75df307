"""DeepSpeed's ZeRO (Rajbhandari et al., SC 2020) as a trainer's strategy; a run's best checkpoint becomes one file.

ZeRO splits what training keeps over the ranks: at stage 2 the optimizer's states and the gradients, at stage 3 the
weights as well. Each rank saves its own part, in one folder a checkpoint, which all ranks must reach.
"""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn

from mmpds.results import whole

LIGHTNING = "lightning"
"""Under which key of DeepSpeed's files Lightning's part of a checkpoint is."""


class ZeRO(DeepSpeedStrategy):
    """DeepSpeed over ranks that a launcher has started: on GPUs, or on CPU cores, for trying out.

    A checkpoint is a folder of one subfolder a step; the file `latest` names the one that is whole. DeepSpeed reads
    such folders by pickle: resume from none but your own.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        assert self.config is not None
        self.config["zero_force_ds_cpu_optimizer"] = False  # offloaded, the model's own optimizer will do

    def setup_environment(self) -> None:
        """See DDPStrategy; Lightning allows DeepSpeed GPUs alone."""
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        """See DeepSpeedStrategy, whose check of the order of GPUs knows no CPU."""
        if isinstance(self.accelerator, CPUAccelerator):
            from deepspeed import ops

            # a reduction of its own within one node, which g++ builds for minutes at first use; gloo does as well
            ops.__compatible_ops__["deepspeed_shm_comm"] = False
            self.set_world_ranks()
            self._init_deepspeed_distributed()
        else:
            super().setup_distributed()

    @property
    def root_device(self) -> torch.device:
        """This rank's device, by number, as DeepSpeed wants it of a CPU too."""
        device = super().root_device
        return torch.device("cpu", 0) if device.type == "cpu" else device

    def on_validation_start(self) -> None:
        """Give all ranks rank 0's buffers, such as BatchNorm's statistics, as DDP does."""
        assert self.lightning_module is not None
        for buffer in self.lightning_module.buffers():
            torch.distributed.broadcast(buffer, 0)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Write each rank's part of a checkpoint; a kill at any moment leaves the one before whole."""
        folder = Path(self.broadcast(filepath))
        if self.is_global_zero and folder.is_file():  # what an earlier fit of this run has made of its best one
            folder.unlink()
        self.barrier()
        kept = {key: value for key, value in checkpoint.items() if key not in ("state_dict", "optimizer_states")}
        tag = f"step{checkpoint['global_step']}"
        self.deepspeed_engine.save_checkpoint(str(folder), client_state={LIGHTNING: kept}, tag=tag)
        if self.is_global_zero:  # DeepSpeed waits for all ranks before it names a tag the latest
            for old in folder.glob("step*"):
                if old.name != tag:
                    shutil.rmtree(old)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """What Lightning keeps of a checkpoint; DeepSpeed puts weights and optimizer states of a folder into place."""
        if Path(checkpoint_path).is_file():
            return dict(self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=weights_only))
        assert self.lightning_module is not None
        fitting = self.lightning_module.trainer.state.fn == TrainerFn.FITTING
        _, state = self.deepspeed_engine.load_checkpoint(
            str(checkpoint_path), load_optimizer_states=fitting, load_lr_scheduler_states=False
        )
        return dict(state[LIGHTNING])

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Take the weights of a file; those of a folder are in place already."""
        if "state_dict" not in checkpoint:
            return
        assert self.lightning_module is not None
        if not self.zero_stage_3:
            self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)
            return
        import deepspeed

        state: dict[str, Any] = dict(checkpoint["state_dict"])
        wrong: list[str] = []
        for name, module in self.lightning_module.named_modules():  # one at a time: all might not fit a GPU
            with deepspeed.zero.GatheredParameters(list(module.parameters(recurse=False)), modifier_rank=0):
                module._load_from_state_dict(state, f"{name}." if name else "", {}, strict, wrong, [], wrong)
        if wrong:
            raise ValueError(f"the checkpoint does not fit this model: {'; '.join(wrong[:3])}")

    def consolidate(self, path: Path) -> None:
        """Put one file of float32 weights, which every trainer reads, where a checkpoint's folder is."""
        self.barrier()
        if self.is_global_zero and path.is_dir():
            folder = path.with_name(f".{path.name}.zero")
            with whole(path) as temporary:
                torch.save(read(path), temporary)
                path.rename(folder)
            shutil.rmtree(folder)
        self.barrier()


def read(folder: Path) -> dict[str, Any]:
    """A checkpoint's folder as other trainers write it in a file: float32 weights, but no optimizer states."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # it tells what it reads
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder))
    step = folder / (folder / "latest").read_text().strip()
    part = min(step.glob("*model_states.pt"))  # Lightning's part is the same in all
    kept = torch.load(part, map_location="cpu", weights_only=False)[LIGHTNING]
    return {**kept, "state_dict": {name: tensor.clone() for name, tensor in weights.items()}}
