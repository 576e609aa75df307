"""The study's record as tables."""

import math

from overhead import PAIRS

from mmpds import scaling
from mmpds.sweep import markdown


def markdown_of(record):
    """The README's text."""
    parts = [f"{record['title']}; STREAM's triad: {triads(record['triad'])}.", overview(record)]
    for found in record["workloads"].values():
        parts.append(
            f"### {found['title']}\n\n{found['items']} items under strong scaling, median (least–most) of "
            f"{found['rounds']} rounds."
        )
        for title, heads, cells in sections(found):
            parts.append(f"{title}\n\n{markdown(heads, cells)}")
        parts.append("\n".join(f"- {line}" for line in lines(found)))
    if record["overhead"]:
        rows = [
            [name, *spread_cells(ratio), f"≥ {ratio['target']}"] for name, ratio in record["overhead"]["ratios"].items()
        ]
        parts.append("### The framework beside a bare PyTorch loop\n\nDenseNet-121, 224 px, the same model, precision, "
                     "layout and memory settings; the loop's batches are in memory.\n\n"
                     + markdown(["images/s, ratio", "median", "spread", "target"], rows))  # fmt: skip
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def overview(record):
    """One row a workload: what the most ranks gave, against as many independent processes, and what limits them."""
    rows = []
    for found in record["workloads"].values():
        best = max(
            (row for row in found["strong"] if "mpi_cpu" in row["job"] and "speedup_steady" in row),
            key=lambda row: row["speedup_steady"],
        )
        pair = found["independent"]
        weak = next((row for row in found["weak"] if pair and row["ranks"] == pair["processes"]), None)
        rows.append([
            found["title"], str(best["ranks"]), ranged(best, "speedup_steady"), ranged(best, "speedup_command"),
            cell(weak and weak["efficiency"]), cell(pair and pair["ratio"]),
            f"≥ {found['target']}" if found["target"] else "", best.get("steady_limit", ""),
            best.get("command_limit", ""),
        ])  # fmt: skip
    heads = ["workload", "MPI ranks", "speed-up", "speed-up, whole command", "weak efficiency",
             "÷ independent processes", "target", "steady state limited by", "whole command by"]  # fmt: skip
    return markdown(heads, rows)


def sections(found):
    """Title, heads and cells of each table of a workload."""
    told = [(f"{title} (strong scaling)", heads, cells) for title, heads, cells in scaling.tables(found["strong"])]
    if found["weak"]:
        rows = [[str(row["ranks"]), str(row["items"]), cell(row["images_per_s"]), cell(row["efficiency"])]
                for row in found["weak"]]  # fmt: skip
        told.append(
            ("Weak scaling: as many items for each rank", ["MPI ranks", "items", "images/s", "efficiency"], rows)
        )
    if model := found["model"]:
        rows = [[str(row["ranks"]), cell(row["seconds"]), cell(row["speedup"])] for row in model["predicted"]]
        told.append((f"Predicted: the whole command of {found['items']} items", ["MPI ranks", "s", "speed-up"], rows))
    return told


def lines(found):
    """Sentences below a workload's tables."""
    said = scaling.remarks(found["strong"])
    for row in found["strong"]:
        if "serial_fraction" in row:
            fraction = row["serial_fraction"]
            limit = (
                f"at most {1 / fraction:.3g} times as fast on any number of ranks" if fraction > 0 else "none at all"
            )
            said.append(f"{row['job']}: serial fraction by Amdahl's law {fraction:.3f}: {limit}")
    if pair := found["independent"]:
        said.append(f"{pair['processes']} independent processes: {cell(pair['images_per_s'])} images/s in all; MPI "
                    f"reaches {cell(pair['ratio'])} of them")  # fmt: skip
    if model := found["model"]:
        terms, unseen = model["terms"], model["unseen"]
        said.append(f"model: {terms['start']:.3g} s + {terms['rank']:.3g} s × (ranks − 1) + items × "
                    f"({terms['serial']:.3g} s + {terms['shared']:.3g} s ÷ ranks)")  # fmt: skip
        said.append(f"not used for the fit: {unseen['items']} items on {unseen['ranks']} ranks take "
                    f"{cell(unseen['measured'])} s, the model says {cell(unseen['seconds'])} s, "
                    f"{100 * unseen['error']:+.1f} %")  # fmt: skip
    return said


def missed(record):
    """The ratios whose median is below their target."""
    found = [
        f"{each['title']}, MPI ÷ independent processes" for each in record["workloads"].values()
        if each["independent"] and each["target"] and each["independent"]["ratio"]["median"] < each["target"]
    ]  # fmt: skip
    ratios = (record["overhead"] or {}).get("ratios", {})
    return found + [name for name in PAIRS if name in ratios and ratios[name]["median"] < ratios[name]["target"]]


def triads(triad):
    """Bandwidths in words."""
    return ", ".join(f"{rate / 1e9:.3g} GB/s on {p} core{'s' * (int(p) > 1)}" for p, rate in triad.items())


def ranged(row, name):
    """A figure of a row of `scaling.compare` with its spread."""
    if name not in row:
        return ""
    return cell(
        {"median": row[name], "min": row.get(f"{name}_min", row[name]), "max": row.get(f"{name}_max", row[name])}
    )


def cell(spread):
    """Median (least–most)."""
    if not spread or any(not math.isfinite(value) for value in spread.values()):
        return ""
    median, least, most = (f"{spread[name]:.3g}" for name in ("median", "min", "max"))
    return median if least == most else f"{median} ({least}–{most})"


def spread_cells(ratio):
    """Median, and least to most."""
    return f"{ratio['median']:.3f}", f"{ratio['min']:.3f} to {ratio['max']:.3f}"
