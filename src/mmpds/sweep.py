"""A sweep: where its jobs go, which are done already, and the one table that sums it up."""

from __future__ import annotations

import csv
import hashlib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpds import launch, results, scaling
from mmpds.check import Problem, config_problems
from mmpds.console import print_problems, say, table
from mmpds.world import World, adopt, ranks

if TYPE_CHECKING:
    from hydra.conf import HydraConf
    from omegaconf import DictConfig

OVERRIDES = "overrides.txt"
HEADLINE = ("test/auroc/macro", "test/average_precision/macro", "test/f1/macro", "test/fid", "test/kid",
            "test/fidelity/macro", "test/accuracy/closed", "test/accuracy/open", "test/hallucination/all",
            "test/omission/all", "timing.fit_s", "timing.predict_s", "timing.throughput_items_per_s",
            "energy.joules")  # fmt: skip
"""What the table of all jobs shows, of what any of them has."""


@dataclass(frozen=True)
class Sweep:
    """One `-m` command: its arguments for Hydra, and the folder that holds a folder a job."""

    argv: list[str]
    folder: Path

    @classmethod
    def of(cls, argv: list[str]) -> Sweep | None:
        """The sweep that a command line asks for, or None; resume_sweep=true finds the newest of the same overrides."""
        if not {"-m", "--multirun"} & set(argv):
            return None
        plain = [text for text in argv if not text.startswith(("resume_sweep=", "hydra.sweep.dir="))]
        given = next((text.partition("=")[2] for text in argv if text.startswith("hydra.sweep.dir=")), None)
        folder = Path(given or Path("sweeps") / launch.new_run_id())
        if "resume_sweep=true" in [text.lower() for text in argv] and not given:
            wanted = cls(plain, folder)._text()
            same = [path.parent for path in Path("sweeps").glob(f"*/{OVERRIDES}") if path.read_text() == wanted]
            folder = max(same, key=lambda path: path.name, default=folder)
        # beside the first override: argparse takes positional arguments from one place only
        place = next((i for i, a in enumerate(plain) if "=" in a and not a.startswith("-")), len(plain))
        return cls([*plain[:place], f"hydra.sweep.dir={folder}", *plain[place:]], folder)

    def problems(self) -> list[Problem]:
        """What keeps a command line from being a sweep; else its folder is made."""
        found = [
            Problem(
                "run_dir",
                text.partition("=")[2],
                "all jobs would share it; name the sweep's folder: hydra.sweep.dir=PATH",
            )
            for text in self.argv
            if text.startswith("run_dir=")
        ]
        if (size := adopt(dict(os.environ)).size) > 1:
            found.append(Problem("-m", f"{size} ranks", "start a sweep once; each of its jobs starts its own ranks"))
        if not found:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / OVERRIDES).write_text(self._text())
        return found

    def _text(self) -> str:
        own = ("hydra.sweep.dir=", "resume_sweep=")
        return "\n".join(sorted(text for text in self.argv if "=" in text and not text.startswith(own)))

    def run(self, cfg: DictConfig, hydra: HydraConf) -> float | None:
        """One job, in processes of its own so that jobs share no state; a failure ends this job alone.

        A job that asks for what this machine lacks, such as a GPU, is skipped: a sweep over trainers is one command
        on every machine. Resuming the sweep elsewhere runs it.

        Returns:
            The figure named by cfg.objective for a sweeper that optimises; None where the job failed.
        """
        overrides = list(hydra.overrides.task)
        varied = self._varied(overrides)
        run_dir = Path(cfg.run_dir or Path(hydra.sweep.dir) / job_folder(varied))
        if results.status(run_dir) == "finished":
            say(f"mmpds: {run_dir.name} is finished already")
        else:
            say(f"mmpds: job {hydra.job.num}: {' '.join(varied)}")
            cfg.run_dir = str(run_dir)
            if cfg.trainer.launcher == "none":
                cfg.ranks = "auto"  # they are for the jobs that have some
            problems = config_problems(cfg, World())
            if not any(problem.key == "resume" for problem in problems):  # which is about what stands there
                results.save_config(cfg, run_dir, overrides, time.time())
            if problems and all(problem.lacking for problem in problems):
                why = "; ".join(map(str, problems))
                results.mark(run_dir, "skipped", why)
                say(f"mmpds: skipped: {why}")
            elif problems:
                print_problems(problems)
                results.mark(run_dir, "failed", "configuration: " + "; ".join(map(str, problems)))
            else:
                began = time.perf_counter()
                code = launch.spawn(launch.launcher_command(cfg, ranks(cfg)), run_dir, os.environ)
                if code in (130, 143):
                    raise KeyboardInterrupt  # the whole sweep was meant, not one job of it
                results.add_timing(run_dir, "command_s", time.perf_counter() - began)
        metrics = results.read(run_dir).get("metrics") or {}
        value = metrics.get(cfg.objective)
        return None if value is None else float(value)

    def _varied(self, overrides: list[str]) -> list[str]:
        """The overrides that a job does not share with all the others; compared by key, for Hydra rewrites values."""
        from hydra.core.override_parser.overrides_parser import OverridesParser

        parser = OverridesParser.create()
        given = [parser.parse_override(argument) for argument in self.argv if "=" in argument and argument[0] != "-"]
        fixed = {override.get_key_element() for override in given if not override.is_sweep_override()}
        return [text for text in overrides if parser.parse_override(text).get_key_element() not in fixed]

    def finish(self) -> int:
        """Print and write the tables of all jobs; returns 1 if any failed, or if all were skipped."""
        jobs = [results.read(path.parent) for path in sorted(self.folder.glob(f"*/{results.FILE}"))]
        if not jobs:
            return 0
        rows = [{"job": job["run_id"]} | results.flatten(job) for job in jobs]
        write_csv(self.folder / "summary.csv", rows)
        shown = [name for name in HEADLINE if any(row.get(name) is not None for row in rows)]
        cells = [[row["job"], row["status"], *(_figure(row.get(name)) for name in shown)] for row in rows]
        heads = ["job", "status", *(name.removeprefix("timing.").removeprefix("test/") for name in shown)]
        ways = scaling.compare(jobs)
        if ways:
            write_csv(self.folder / "scaling.csv", ways)
        told = [(f"Sweep, {len(jobs)} jobs", heads, cells), *(scaling.tables(ways) if ways else ())]
        remarks = scaling.remarks(ways)
        text = "\n".join(f"{title}\n\n{markdown(columns, lines)}" for title, columns, lines in told)
        results.write_text(self.folder / "summary.md", text + "".join(f"\n- {remark}" for remark in remarks) + "\n")
        for title, columns, lines in told:
            table(title, columns, lines)
        sys.stdout.write("".join(f"  ! {remark}\n" for remark in remarks))
        sys.stdout.write(f"  {self.folder}/summary.md, summary.csv{', scaling.csv' * bool(ways)}\n")
        statuses = {job["status"] for job in jobs}
        if statuses == {"skipped"}:
            say("mmpds: every job was skipped: this machine has nothing that any of them asks for")
        return int(statuses == {"skipped"} or not statuses <= {"finished", "skipped"})


def job_folder(overrides: list[str]) -> str:
    """A folder name for a job: what it varies, made safe; a hash stands in where that is too long."""
    name = ",".join(sorted(overrides)).replace("/", "_") or "job"
    return name if len(name) <= 150 else name[:120] + "-" + hashlib.sha256(name.encode()).hexdigest()[:12]


def markdown(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows whose keys may differ; a column a key, in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({key: results.inert(value) for key, value in row.items()} for row in rows)


def _figure(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
