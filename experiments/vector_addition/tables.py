"""The figures as Markdown: triads, additions, targets, what was not run, and the study's Table 2 beside them."""

import study as table_2
from entries import cache_bytes

from mmpds.sweep import markdown

TARGET = 0.9


def cell(value, form, scale=1):
    """A value or a dash."""
    return "–" if value is None else form.format(scale * value)


def spread(row):
    """The middle 80 % of the times in milliseconds."""
    return f"{1000 * row['p10_s']:.4g} to {1000 * row['p90_s']:.4g}"


def measured(record, *bounds):
    """Rows of the programs that ran: additions, or triads of these bounds."""
    return [row for row in record["programs"] if row["status"] == "measured" and row["bound"] in (bounds or ("",))]


def targets(record):
    """Each target's best entry; its share is None where nothing was measured."""
    found = {}
    full = record["hardware"]["cores"]
    for name, device, workers in (("CPU, all cores", "cpu", full), ("GPU", "gpu", 1)):
        if device not in {row["device"] for row in record["programs"]}:
            continue
        rows = [row for row in measured(record) if (row["device"], row["workers"]) == (device, workers)]
        best = max(
            (row for row in rows if "share_of_memory" in row), key=lambda row: row["share_of_memory"], default={}
        )
        found[name] = {"best": f"{best['language']}, {best['how']}" if best else None, "target": TARGET}
        found[name] |= {"share_of_memory": best.get("share_of_memory"), "share_of_size": best.get("share_of_size")}
    return found


def study(record):
    """The study's Table 2 with what was measured here."""
    return table_2.corrected({f"{row['language']}, {row['how']}": row["median_s"] for row in measured(record)})


def triads(record):
    rows = [
        [
            f"{row['language']}, {row['how']}", f"{row['elements']:,}", f"{row['workers']}",
            f"{1000 * row['min_s']:.4g}", f"{1000 * row['median_s']:.4g}", spread(row), f"{row['gb_per_s']:.3g}",
        ]
        for row in measured(record, "memory", "size")
    ]  # fmt: skip
    return markdown(["triad", "elements", "workers", "least ms", "median ms", "10–90 % ms", "GB/s"], rows)


def additions(record):
    rows, sequential = [], {}
    for row in measured(record):
        if row["how"] == "sequential":
            sequential[row["language"]] = row["median_s"]
        base = sequential.get(row["language"])
        rows.append([
            f"{row['language']}, {row['how']}", f"{row['workers']}", f"{1000 * row['first_touch_s']:.3g}",
            cell(row["transfer_s"], "{:.3g}", 1000), f"{1000 * row['min_s']:.4g}", f"{1000 * row['median_s']:.4g}",
            spread(row), cell(base and base / row["median_s"], "{:.3g} ×"), f"{row['gb_per_s']:.3g}",
            cell(row.get("share_of_memory"), "{:.0f} %", 100), cell(row.get("share_of_size"), "{:.0f} %", 100),
        ])  # fmt: skip
    heads = ["addition", "workers", "first touch ms", "transfer ms", "least ms", "median ms", "10–90 % ms", "speed-up",
             "GB/s", "of STREAM", "of triad, same size"]  # fmt: skip
    return markdown(heads, rows)


def remarks(record):
    """What a reader must know of the figures, as a list."""
    lines = []
    for name, target in record["targets"].items():
        if target["best"]:
            verdict = "reached" if target["share_of_memory"] >= target["target"] else "missed"
            lines.append(
                f"{name}: {target['best']} is the best, at {cell(target['share_of_memory'], '{:.0%}')} of STREAM's "
                f"triad and {cell(target['share_of_size'], '{:.0%}')} of the triad of the same size; the target of "
                f"{target['target']:.0%} of STREAM is {verdict}."
            )
        else:
            lines.append(f"{name}: nothing was measured.")
    for bound, what in (("memory", "STREAM's triad"), ("size", "the triad of the same size")):
        rates = [row["gb_per_s"] for row in measured(record, bound) if row["device"] == "cpu"]
        if len(rates) == 2:
            lines.append(f"Non-temporal stores make {what} {rates[1] / rates[0]:.2f} × as fast.")
    size = 3 * record["elements"] * {"float32": 4, "float64": 8}[record["type"]]
    if size < cache_bytes() and any(row["device"] == "cpu" for row in record["programs"]):
        lines.append(
            f"The three vectors take {size / 1e6:.3g} MB, the last-level cache is {cache_bytes() / 1e6:.3g} MB: part "
            "of them may stay in it, and STREAM's cannot. The last column compares vectors of one length."
        )
    lines += [
        f"{row['language']}, {row['how']}: timed on {row['elements']:,} elements, scaled to {record['elements']:,}."
        for row in measured(record)
        if row["elements"] != record["elements"]
    ]
    lines += [
        f"{row['language']}, {row['how']}: {row['status']}: {row['reason']}."
        for row in record["programs"]
        if row["status"] != "measured"
    ]
    return lines


def verdicts(record):
    """What the study calls its own seconds against what they are, as a list."""
    return [
        f"{row['language']} {row['how']}: called “{row['stated']}”; {1000 * row['seconds']:.4g} ms are "
        f"{row['gflops']:.3g} GFLOPS"
        + (f" and {row['speedup']:.3g} × of {row['base']}'s sequential speed" if row["speedup"] else "")
        + (": slower." if row["speedup"] and row["speedup"] < 1 else ".")
        for row in record["study"]
        if row["stated"]
    ]


def page(record):
    """The block of the README."""
    hardware = record["hardware"]
    gpu = "".join(f", {name}" for name in hardware["gpu"])
    title = (
        f"{record['elements']:,} elements of {record['type']}; {record['rounds']} × {record['repeats']} repetitions, "
        f"each time after a warm-up; {hardware['cpu']}, {hardware['cores']} cores{gpu}."
    )
    bullets = "\n".join("- " + line for line in remarks(record))
    corrections = "\n".join("- " + line for line in verdicts(record))
    return (
        f"{title}\n\n{triads(record)}\n{additions(record)}\n{bullets}\n\n"
        f"**The study's Table 2, its arithmetic done anew**, beside the medians here, on another machine:\n\n"
        f"{table_2.table(record['study'])}\n{corrections}\n"
    )
