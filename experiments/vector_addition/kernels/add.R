# Vector addition, c = a + b, in R: Rscript add.R HOW WORKERS ELEMENTS REPEATS prints one line of JSON.
#
# HOW is sequential, forks (package parallel) or mpi (package Rmpi, under mpirun). R allocates c anew in every addition.

WARM_UP <- 3
TRANSFERS <- 5
WORLD <- 0 # Rmpi's number of MPI_COMM_WORLD
DOUBLE <- 2 # Rmpi's number of the type

arguments <- commandArgs(TRUE)
how <- arguments[1]
workers <- as.integer(arguments[2])
n <- as.numeric(arguments[3])
repeats <- as.integer(arguments[4])

now <- function() as.numeric(Sys.time())

# a or b at the places first, first + 1, … of the whole vector; the first place is 0
part <- function(first, count, modulus) (first + seq_len(count) - 1) %% modulus

say <- function(touched, times, transfers, total) {
  list_of <- function(values) paste(sprintf("%.9f", values), collapse = ", ")
  cat(sprintf(
    '{"first_touch_s": %.9f, "times_s": [%s], "transfer_s": [%s], "workers": %d, "sum": %.0f, "weighted": %.0f}\n',
    touched, list_of(times), list_of(transfers), workers, sum(total), sum(total * (part(0, n, 97) + 1))
  ))
}

starts <- floor(n * (0:workers) / workers)
counts <- diff(starts)
times <- transfers <- numeric(0)

if (how == "sequential") {
  began <- now()
  a <- part(0, n, 1000)
  b <- part(0, n, 777)
  touched <- now() - began
  for (i in seq_len(WARM_UP + repeats)) {
    began <- now()
    total <- a + b
    times[i] <- now() - began
  }
} else if (how == "forks") {
  began <- now()
  a <- Map(part, starts[-(workers + 1)], counts, 1000)
  b <- Map(part, starts[-(workers + 1)], counts, 777)
  touched <- now() - began
  add <- function(worker) {
    began <- now()
    sum <- a[[worker]] + b[[worker]]
    list(seconds = now() - began, sum = sum)
  }
  for (i in seq_len(WARM_UP + repeats)) {
    began <- now()
    done <- parallel::mclapply(seq_len(workers), add, mc.cores = workers)
    total <- unlist(lapply(done, `[[`, "sum"))
    spent <- now() - began
    times[i] <- max(sapply(done, `[[`, "seconds"))
    transfers[i] <- spent - times[i]
  }
  transfers <- transfers[-seq_len(WARM_UP)]
} else {
  suppressMessages(library(Rmpi))
  rank <- mpi.comm.rank(WORLD)
  workers <- mpi.comm.size(WORLD)
  count <- counts[rank + 1]
  began <- now()
  a <- part(starts[rank + 1], count, 1000)
  b <- part(starts[rank + 1], count, 777)
  touched <- now() - began
  for (i in seq_len(WARM_UP + repeats)) {
    mpi.barrier(WORLD)
    began <- now()
    share <- a + b
    times[i] <- now() - began
  }
  whole <- function(modulus) if (rank == 0) part(0, n, modulus) else numeric(0)
  whole_a <- whole(1000)
  whole_b <- whole(777)
  room <- numeric(if (rank == 0) n else 0)
  for (i in seq_len(1 + TRANSFERS)) {
    mpi.barrier(WORLD)
    began <- now()
    a <- mpi.scatterv(whole_a, counts, DOUBLE, numeric(count), 0, WORLD)
    b <- mpi.scatterv(whole_b, counts, DOUBLE, numeric(count), 0, WORLD)
    there <- now() - began
    share <- a + b
    mpi.barrier(WORLD)
    began <- now()
    total <- mpi.gatherv(share, DOUBLE, room, counts, 0, WORLD)
    transfers[i] <- there + now() - began
  }
  longest <- function(values) mpi.allreduce(values, DOUBLE, "max", WORLD)
  touched <- longest(touched)
  times <- longest(times)
  transfers <- longest(transfers)[-1]
}
times <- times[-seq_len(WARM_UP)]
if (how != "mpi" || rank == 0) say(touched, times, transfers, total)
if (how == "mpi") invisible(mpi.finalize())
