"""What the study's tables of seconds say when their arithmetic is done again."""

from rows import CONFIRMED, CORRECTED, NOT_COMPARABLE, NOT_RECOMPUTABLE, Row, agrees, half_digit, judged

BYTES = 3 * 8
"""Of one addition of float64: two read, one written. The study does not say its type."""


def rows_of(claims):
    """Title -> rows."""
    generation = claims["generation"]
    return {
        "Runtime of image generation": [*runtime(generation), seconds_row(), hybrid(generation)],
        "Throughput": [*throughput(generation), column(generation)],
        "Energy": [energy(generation)],
        "GPU batches": [batches(generation), seconds_per_image(generation)],
        "Vector addition": additions(claims["vector_addition"]),
    }


def runtime(generation):
    """The speed-up of each mode."""
    modes = generation["modes"]
    first = float(modes[0]["seconds"])
    rows = []
    for mode in modes:
        speedup = first / float(mode["seconds"])
        slower = "It is a slow-down." if speedup < 1 else ""
        says = f"{mode['seconds']} s, speed-up {mode['speedup']}"
        verdict = judged(mode["speedup"], speedup)
        rows.append(Row(f"{mode['mode']}, {mode['where']}", says, f"speed-up {speedup:.3g}", verdict, slower))
    return rows


def seconds_row():
    """The seconds themselves."""
    why = (
        "The study's generator, its nodes and its GPU are not here, and no spread is given. The same comparison on "
        "this machine, with start-up apart: [strategies](../strategies/README.md)."
    )
    return Row("The seconds themselves", "one figure a mode", "–", NOT_RECOMPUTABLE, why)


def hybrid(generation):
    """The efficiency of two GPUs against one."""
    one, two = (next(m for m in generation["modes"] if m["mode"] == name) for name in ("GPU", "MPI + GPU"))
    speedup = float(one["seconds"]) / float(two["seconds"])
    efficiency = 100 * speedup / float(two["workers"])
    low, high = generation["hybrid_efficiency"]
    verdict = CONFIRMED if float(low) <= efficiency <= float(high) else CORRECTED
    measured = f"{speedup:.3g}× on {two['workers']} GPUs: {efficiency:.0f} %"
    return Row("Efficiency of MPI with GPUs", f"{low}–{high} %", measured, verdict)


def throughput(generation):
    """The images that each printed rate counts, and the rate of all of them."""
    images, rows = int(generation["images"]), []
    for mode in generation["modes"]:
        seconds = float(mode["seconds"])
        implied, rate = float(mode["images_per_s"]) * seconds, images / seconds
        measured = f"{images} / {mode['seconds']} s = {rate:.3g}; the printed rate counts {implied:.2f} images"
        verdict = judged(mode["images_per_s"], rate)
        rows.append(Row(f"{mode['mode']}, images a second", mode["images_per_s"], measured, verdict))
    return rows


def column(generation):
    """Whether the rates of the column count the same thing."""
    modes = generation["modes"]
    implied = sorted({round(float(m["images_per_s"]) * float(m["seconds"])) for m in modes})
    first, gpu = modes[0], next(m for m in modes if m["mode"] == "GPU")
    ratio = float(gpu["images_per_s"]) / float(first["images_per_s"])
    true = float(first["seconds"]) / float(gpu["seconds"])
    measured = (
        f"rows count {' and '.join(map(str, implied))} images; in one unit the GPU's is {true:.0f} times the core's"
    )
    verdict = CONFIRMED if len(implied) == 1 else NOT_COMPARABLE
    why = f"A reader who divides the column is off by a factor of {ratio / true:.1f}." if len(implied) > 1 else ""
    return Row("The rates beside each other", f"GPU {ratio:.0f} times one core", measured, verdict, why)


def energy(generation):
    """The mean power that the energy column would imply."""
    modes = generation["modes"]
    first = float(modes[0]["seconds"])
    power = {m["mode"]: float(m["energy"]) * first / float(m["seconds"]) for m in modes}
    why = (
        "Its own section on limitations says that energy was never measured. Energy is mean power times seconds: the "
        "column would be right if the modes drew the power that stands here."
    )
    implied = ", ".join(f"{name} {value:.3g}" for name, value in power.items())
    says = ", ".join(m["energy"] for m in modes) + " of one core's"
    return Row("Relative energy", says, f"implied power, in one core's: {implied}", NOT_RECOMPUTABLE, why)


def line(batches):
    """Start-up and seconds an image through two printed rows, and how far rounding lets them reach.

    Returns:
        Seconds of start-up and of an image; the most of an image and the least of start-up that round to these rows.
    """
    (few, fast), (many, slow) = sorted(batches.items(), key=lambda row: int(row[0]))
    more = int(many) - int(few)
    each = (float(slow) - float(fast)) / more
    most = each + (half_digit(slow) + half_digit(fast)) / more
    least = float(fast) - half_digit(fast) - int(few) * most
    return float(fast) - int(few) * each, each, most, least


def batches(generation):
    """Start-up and cost an image, from the two batches."""
    start_up, each, most, least = line(generation["batches"])
    says = ", ".join(f"{images} images {seconds} s" for images, seconds in generation["batches"].items())
    gpu = next(m for m in generation["modes"] if m["mode"] == "GPU")
    told = start_up + int(generation["images"]) * each
    measured = f"start-up {start_up:.0f} s (at least {least:g} s), an image {each:.0f} s (at most {most:g} s)"
    why = (
        f"Start-up is at least {100 * least / max(map(float, generation['batches'].values())):.0f} % of either run: "
        f"neither is a measurement of a batch. The same line gives {told:.0f} s for {generation['images']} images, the "
        f"runtime table has {gpu['seconds']} s: runs differ by more than an image costs."
    )
    verdict = NOT_COMPARABLE if least > most * max(map(int, generation["batches"])) else CONFIRMED
    return Row("Batch sizes compared", says, measured, verdict, why)


def seconds_per_image(generation):
    """The seconds an image, which are a rate."""
    stated = generation["seconds_per_image"]
    images, seconds = max(generation["batches"].items(), key=lambda row: int(row[0]))
    each, rate = float(seconds) / int(images), int(images) / float(seconds)
    measured = f"{seconds} s / {images} = {each:.4g} s an image, start-up included"
    why = f"{images} / {seconds} = {rate:.3g} images a second: the unit is inverted." if agrees(stated, rate) else ""
    return Row("Seconds an image on the GPU", f"{stated} s", measured, judged(stated, each), why)


def additions(addition):
    """Each entry's rate, and its speed-up over its own language's sequential one."""
    alone = {e["language"]: float(e["seconds"]) for e in addition["entries"] if e["where"] == "sequential"}
    rows = [one_addition(entry, alone, int(addition["elements"])) for entry in addition["entries"]]
    why = (
        "They are another machine's; GB/s counts three float64 an addition, which is an assumption. The same additions "
        "on this machine: [vector_addition](../vector_addition/README.md)."
    )
    return [*rows, Row("The seconds themselves", "one figure an entry", "–", NOT_RECOMPUTABLE, why)]


def one_addition(entry, alone, elements):
    """The row of one entry; `alone` has the sequential seconds of each language."""
    seconds, base = float(entry["seconds"]), alone.get(entry["language"])
    gflops = elements / seconds / 1e9
    claim, says = f"{entry['language']}, {entry['where']}", f"{entry['seconds']} s"
    measured = f"{gflops:.3g} GFLOPS, {gflops * BYTES:.3g} GB/s"
    if "gflops" in entry:
        says += f", {entry['gflops']} GFLOPS"
        return Row(
            claim, says, measured, judged(entry["gflops"], gflops), f"One addition for each of {elements:,} elements."
        )
    if entry["where"] == "sequential":
        return Row(claim, says, measured, NOT_RECOMPUTABLE)
    if not base:
        why = "There is no sequential figure of this language to compare with."
        return Row(claim, says, measured, NOT_COMPARABLE, why)
    speedup, workers = base / seconds, int(entry["workers"])
    measured += f"; speed-up {speedup:.3g} on {workers}"
    verdict, why = NOT_RECOMPUTABLE, f"Efficiency {100 * speedup / workers:.0f} %."
    if speedup > workers:
        verdict = NOT_COMPARABLE
        why = f"More than {workers} can give: the two figures are of unlike programs, or one holds a start-up."
    elif speedup < 1:
        why = f"A slow-down by {1 / speedup:.3g}."
    if "speedup" in entry:
        says += f", speed-up {entry['speedup']}"
        verdict = judged(entry["speedup"], speedup)
    return Row(claim, says, measured, verdict, why)
