/* Times the function `work` of another file, in C, C++ or Fortran: the same clock and the same steps for all.

   PROGRAM ELEMENTS REPEATS prints one line of JSON: seconds of allocation and first touch, of each repetition after the
   warm-up, and of the data's way to the ranks and back; two checksums of c.

   REAL    type of the elements, float or double
   RANKS   where defined, each MPI rank works on its share of the elements
   OpenMP  where compiled with it, the threads that add also touch first: the memory is then near their cores */

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#ifdef RANKS
#include <mpi.h>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

enum { WARM_UP = 3, TRANSFERS = 5, HUGE_PAGE = 2 << 20 };

void work(const REAL *a, const REAL *b, REAL *c, long n);

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* Memory that may lie on huge pages, as NumPy's does; not touched yet. */
static REAL *allocate(long n)
{
    size_t bytes = (n * sizeof(REAL) / HUGE_PAGE + 1) * HUGE_PAGE;
    REAL *memory = aligned_alloc(HUGE_PAGE, bytes);
    if (!memory) {
        fprintf(stderr, "error: no memory for %zu bytes\n", bytes);
        exit(1);
    }
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#endif
    return memory;
}

/* Small whole numbers, whose sums are exact in either type, at the places first, first + 1, … of the whole vectors. */
static void fill(REAL *a, REAL *b, REAL *c, long first, long n)
{
#pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++) {
        a[i] = (first + i) % 1000;
        b[i] = (first + i) % 777;
        c[i] = 0;
    }
}

static void print(const char *name, const double *values, int count)
{
    printf("\"%s\": [", name);
    for (int i = 0; i < count; i++)
        printf("%s%.9f", i ? ", " : "", values[i]);
    printf("], ");
}

#ifdef RANKS
/* Seconds from rank 0's whole vectors to every rank's share and, after the work, back: the work is not counted. */
static double transfer(REAL *whole[3], REAL *share[3], const int *counts, const int *starts, int rank)
{
    MPI_Datatype type = sizeof(REAL) == 4 ? MPI_FLOAT : MPI_DOUBLE;
    MPI_Barrier(MPI_COMM_WORLD);
    double began = seconds();
    for (int i = 0; i < 2; i++)
        MPI_Scatterv(whole[i], counts, starts, type, share[i], counts[rank], type, 0, MPI_COMM_WORLD);
    double there = seconds() - began;
    work(share[0], share[1], share[2], counts[rank]);
    MPI_Barrier(MPI_COMM_WORLD);
    began = seconds();
    MPI_Gatherv(share[2], counts[rank], type, whole[2], counts, starts, type, 0, MPI_COMM_WORLD);
    return there + seconds() - began;
}

static void longest(double *values, int count)
{
    double *most = malloc(count * sizeof(double));
    MPI_Allreduce(values, most, count, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    for (int i = 0; i < count; i++)
        values[i] = most[i];
    free(most);
}
#endif

int main(int count, char **arguments)
{
    if (count != 3) {
        fprintf(stderr, "error: usage: %s ELEMENTS REPEATS\n", arguments[0]);
        return 2;
    }
    long n = atol(arguments[1]), first = 0, share = n;
    int repeats = atoi(arguments[2]), rank = 0, workers = 1, transfers = 0;
    double *times = malloc(repeats * sizeof(double)), way[TRANSFERS] = {0};
#ifdef _OPENMP
    workers = omp_get_max_threads();
#endif
#ifdef RANKS
    MPI_Init(&count, &arguments);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &workers);
    first = n * rank / workers;
    share = n * (rank + 1) / workers - first;
    MPI_Barrier(MPI_COMM_WORLD);
#endif
    double touch = seconds();
    REAL *a = allocate(share), *b = allocate(share), *c = allocate(share);
    fill(a, b, c, first, share);
    touch = seconds() - touch;

    for (int i = -WARM_UP; i < repeats; i++) {
#ifdef RANKS
        MPI_Barrier(MPI_COMM_WORLD);
#endif
        double began = seconds();
        work(a, b, c, share);
        if (i >= 0)
            times[i] = seconds() - began;
    }
#ifdef RANKS
    int *counts = malloc(workers * sizeof(int)), *starts = malloc(workers * sizeof(int));
    for (int i = 0; i < workers; i++) {
        starts[i] = n * i / workers;
        counts[i] = n * (i + 1) / workers - starts[i];
    }
    REAL *whole[3] = {0}, *shares[3] = {a, b, c};
    if (rank == 0) {
        for (int i = 0; i < 3; i++)
            whole[i] = allocate(n);
        fill(whole[0], whole[1], whole[2], 0, n);
    }
    transfers = TRANSFERS;
    for (int i = -1; i < transfers; i++) {
        double spent = transfer(whole, shares, counts, starts, rank);
        if (i >= 0)
            way[i] = spent;
    }
    longest(&touch, 1);
    longest(times, repeats);
    longest(way, transfers);
    c = whole[2];
    MPI_Finalize();
#endif
    if (rank)
        return 0;
    double sum = 0, weighted = 0;
#pragma omp parallel for reduction(+ : sum, weighted)
    for (long i = 0; i < n; i++) {
        sum += c[i];
        weighted += c[i] * (double)(i % 97 + 1);
    }
    printf("{\"first_touch_s\": %.9f, ", touch);
    print("times_s", times, repeats);
    print("transfer_s", way, transfers);
    printf("\"workers\": %d, \"sum\": %.0f, \"weighted\": %.0f}\n", workers, sum, weighted);
    return 0;
}
