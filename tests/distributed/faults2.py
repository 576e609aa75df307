"""A fault that goes away between two runs."""

from pathlib import Path

from lightning.pytorch.callbacks import Callback


class UntilMended(Callback):
    """Fails the training of a sweep's job `trainer=NAME` until a file is there."""

    def __init__(self, file: str, trainer: str) -> None:
        self.file, self.job = Path(file), f"trainer={trainer}"

    def on_train_start(self, trainer, pl_module):
        if Path(trainer.default_root_dir).name == self.job and not self.file.exists():
            raise RuntimeError(f"there is no {self.file} yet")
