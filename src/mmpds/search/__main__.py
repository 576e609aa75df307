"""Search an archive of images by text or image, with the embeddings of a CLIP.

python -m mmpds.search build ARCHIVE checkpoint=FILE.ckpt data.predict_root=FOLDER [trainer=mpi_cpu …]
python -m mmpds.search query ARCHIVE "left pleural effusion" --k 10
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmpds.console import say
from mmpds.world import cap_threads, cores

TRAIN = Path(__file__).resolve().parents[3] / "train.py"
INDICES = ("exact", "ivf", "hnsw")
DEVICES = ("cpu", "cuda")


def main(arguments: Sequence[str] | None = None) -> int:
    """Build an archive, or ask one.

    Returns:
        The exit status: 0, or 2 after one line about what is wrong.
    """
    given = _parser().parse_args(arguments)
    if given.command == "build":
        # train.py owns ranks, signals and the run's record: this process becomes it
        path = str(Path(given.archive).resolve()).replace("'", r"\'")
        archive = f"callbacks.embeddings.archive='{path}'"  # a name may hold what Hydra takes for grammar
        os.execv(sys.executable, [sys.executable, str(TRAIN), "experiment=embed", archive, *given.overrides])
    try:
        if problems := _problems(given):
            raise ValueError("; ".join(problems))
        cap_threads(cores(), os.environ)
        from mmpds.search.query import ask  # from here on torch is loaded

        ask(
            Path(given.archive), given.text, given.image, given.k, given.ranks, given.index, given.device,
            given.checkpoint, given.sheet, given.verify,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        say(f"mmpds.search: {' '.join(str(error).split())}")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m mmpds.search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="embed a folder's images, or add them to an archive")
    build.add_argument("archive", metavar="ARCHIVE", help="its folder; what it holds is not embedded again")
    build.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as train.py takes them")
    query = commands.add_parser("query", help="find the images next to a text or an image")
    query.add_argument("archive", metavar="ARCHIVE")
    query.add_argument("text", nargs="*", metavar="TEXT", help="queries")
    query.add_argument("--image", nargs="+", type=Path, default=[], metavar="FILE", help="images as queries")
    query.add_argument("--k", type=int, default=10, help="hits a query (10)")
    query.add_argument("--ranks", type=int, default=1, help="MPI ranks of exact search (1)")
    query.add_argument("--index", choices=INDICES, default="exact", help="approximate ones tell their recall")
    query.add_argument("--device", choices=DEVICES, default="cpu", help="of exact search")
    query.add_argument("--checkpoint", metavar="FILE", help="the model, where it is not where the archive knows it")
    query.add_argument("--sheet", type=Path, default=Path("hits.html"), metavar="FILE", help="hits.html")
    query.add_argument("--verify", action="store_true", help="compare the archive's hashes first")
    return parser


def _problems(given: argparse.Namespace) -> list[str]:
    """All that is wrong with a query's arguments, each with its cure; before anything heavy loads."""
    found = [f"--image {file}: there is no such file" for file in given.image if not file.is_file()]
    if not given.text and not given.image:
        found.append("nothing is asked for: give a text, or --image FILE")
    found += [f"--{name} {getattr(given, name)}: give 1 or more" for name in ("k", "ranks") if getattr(given, name) < 1]
    if given.index != "exact" and (given.ranks > 1 or given.device != "cpu"):
        found.append(f"--index {given.index} is searched on the CPU by one rank: leave out --ranks and --device")
    if given.checkpoint and not Path(given.checkpoint).exists():
        found.append(f"--checkpoint {given.checkpoint}: there is no such file")
    if given.device == "cuda":
        from mmpds.world import gpus

        if not gpus():
            found.append("--device cuda: this machine has no GPU; leave it out")
    return found


if __name__ == "__main__":
    sys.exit(main())
