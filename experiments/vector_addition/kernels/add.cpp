// Vector addition, c = a + b, in C++: the standard library's transform, or OpenMP where compiled with it.

#include <algorithm>
#include <functional>

extern "C" void work(const REAL *__restrict a, const REAL *__restrict b, REAL *__restrict c, long n)
{
#ifdef _OPENMP
#pragma omp parallel for schedule(static)
    for (long i = 0; i < n; i++)
        c[i] = a[i] + b[i];
#else
    std::transform(a, a + n, b, c, std::plus<REAL>());
#endif
}
