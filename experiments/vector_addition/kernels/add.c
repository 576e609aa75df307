/* Vector addition, c = a + b, in C; with SCALAR it is STREAM's triad, c = a + SCALAR b (McCalpin 1995).

   NON_TEMPORAL  c is written past the caches: its old content is then not read from memory before it is replaced */

#ifdef SCALAR
#define SUM(x, y) ((x) + (REAL)SCALAR * (y))
#else
#define SUM(x, y) ((x) + (y))
#endif

#ifdef NON_TEMPORAL
#ifndef __SSE2__
#error "non-temporal stores are written for x86 processors only"
#endif
#include <emmintrin.h>

typedef REAL Vector __attribute__((vector_size(16)));
enum { LANES = sizeof(Vector) / sizeof(REAL) };

/* a, b and c begin at multiples of 16 bytes. */
void work(const REAL *restrict a, const REAL *restrict b, REAL *restrict c, long n)
{
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (long i = 0; i < n / LANES; i++) {
            Vector sum = SUM(((const Vector *)a)[i], ((const Vector *)b)[i]);
            _mm_stream_si128((__m128i *)c + i, (__m128i)sum);
        }
        _mm_sfence(); /* such stores are weakly ordered: seen by the others before the work counts as done */
    }
    for (long i = n / LANES * LANES; i < n; i++)
        c[i] = SUM(a[i], b[i]);
}
#else
void work(const REAL *restrict a, const REAL *restrict b, REAL *restrict c, long n)
{
#pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++)
        c[i] = SUM(a[i], b[i]);
}
#endif
