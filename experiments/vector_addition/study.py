"""The study's Table 2, vector addition of 10 million elements, with its arithmetic done anew."""

from mmpds.sweep import markdown

ELEMENTS = 10_000_000
# language, how, workers, seconds, what the study calls it, the same here
TABLE_2 = (
    ("Python", "sequential", 1, 1.0, "", "Python, sequential"),
    ("Python", "MPI", 4, 0.023547, "", "Python, NumPy, MPI"),
    ("C", "sequential", 1, 0.037839, "", "C, sequential"),
    ("C++", "OpenMP", 8, 0.010388, "", "C++, OpenMP"),
    ("C++", "CUDA", 1, 0.0101235, "1.657 GFLOPS", "C++, CUDA"),
    ("Fortran", "sequential", 1, 0.01097, "", "Fortran, sequential"),
    ("Fortran", "OpenMP", 8, 0.02033, "1.86 ×", "Fortran, OpenMP"),
    ("Fortran", "MPI", 8, 0.003829, "", "Fortran, MPI"),
    ("Julia", "sequential", 1, 1.130214, "", "Julia, sequential"),
    ("Julia", "threads", 8, 0.0335, "0.42", "Julia, threads"),
    ("R", "MPI", 12, 0.012, "", "R, MPI"),
    ("R", "parallel", None, 0.043197, "", "R, forks"),
)
BASES = {"C++": "C"}
"""Whose sequential time is the base of a language that has none in the table."""


def corrected(measured):
    """The table's rows: what the study states and what follows from its seconds, beside what was measured here.

    Args:
        measured: name of a program -> its seconds here, for those that were measured.
    """
    sequential = {language: seconds for language, how, _, seconds, *_ in TABLE_2 if how == "sequential"}
    here_sequential = {name.split(",")[0]: s for name, s in measured.items() if name.endswith(", sequential")}
    rows = []
    for language, how, workers, seconds, stated, name in TABLE_2:
        base = BASES.get(language, language)
        here, here_base = measured.get(name), here_sequential.get(base)
        rows.append({
            "language": language, "how": how, "workers": workers, "seconds": seconds, "stated": stated,
            "base": base if base in sequential else None,
            "speedup": sequential[base] / seconds if base in sequential else None,
            "gflops": ELEMENTS / seconds / 1e9,
            "gb_per_s": 3 * 8 * ELEMENTS / seconds / 1e9,
            "here_s": here,
            "here_speedup": here_base / here if here and here_base else None,
        })  # fmt: skip
    return rows


def table(rows):
    """The rows as Markdown."""
    heads = ["study", "workers", "ms", "stated", "speed-up", "GFLOPS", "GB/s", "here, ms", "here, speed-up"]

    def cell(value, form):
        return "–" if value is None else form.format(value)

    return markdown(heads, [
        [
            f"{row['language']} {row['how']}", cell(row["workers"], "{}"), f"{1000 * row['seconds']:.4g}",
            f"“{row['stated']}”" if row["stated"] else "", cell(row["speedup"], "{:.3g} ×"), f"{row['gflops']:.3g}",
            f"{row['gb_per_s']:.3g}", cell(row["here_s"] and 1000 * row["here_s"], "{:.4g}"),
            cell(row["here_speedup"], "{:.3g} ×"),
        ]
        for row in rows
    ])  # fmt: skip
