/* Vector addition, c = a + b, in CUDA C++; with SCALAR it is STREAM's triad, c = a + SCALAR b. Device 0.

   PROGRAM ELEMENTS REPEATS prints one line of JSON, as harness.c does; a transfer is that of a and b to the device and
   of c back, from and to pageable memory. REAL is the type of the elements. */

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#ifdef SCALAR
#define SUM(x, y) ((x) + (REAL)SCALAR * (y))
#else
#define SUM(x, y) ((x) + (y))
#endif

#define CHECK(call)                                                             \
    do {                                                                        \
        cudaError_t status = (call);                                            \
        if (status != cudaSuccess) {                                            \
            std::fprintf(stderr, "CUDA error: %s\n", cudaGetErrorString(status)); \
            std::exit(1);                                                       \
        }                                                                       \
    } while (0)

constexpr int WARM_UP = 3, TRANSFERS = 5, BLOCK = 256, LANES = 16 / sizeof(REAL);

struct alignas(16) Vector {  // what a thread loads and stores at once at most
    REAL lane[LANES];
};

__global__ void work(const Vector *a, const Vector *b, Vector *c, long vectors)
{
    long i = (long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < vectors) {
        Vector x = a[i], y = b[i];
        for (int k = 0; k < LANES; k++)
            x.lane[k] = SUM(x.lane[k], y.lane[k]);
        c[i] = x;
    }
}

static double seconds()
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void print(const char *name, const std::vector<double> &values)
{
    std::printf("\"%s\": [", name);
    for (size_t i = 0; i < values.size(); i++)
        std::printf("%s%.9f", i ? ", " : "", values[i]);
    std::printf("], ");
}

int main(int count, char **arguments)
{
    if (count != 3) {
        std::fprintf(stderr, "error: usage: %s ELEMENTS REPEATS\n", arguments[0]);
        return 2;
    }
    long n = std::atol(arguments[1]), vectors = (n + LANES - 1) / LANES;
    int repeats = std::atoi(arguments[2]);
    size_t bytes = n * sizeof(REAL);
    CHECK(cudaFree(nullptr));  // starts CUDA, which is no part of the first touch

    double began = seconds();
    std::vector<REAL> a(n), b(n), c(n);
    for (long i = 0; i < n; i++) {
        a[i] = i % 1000;
        b[i] = i % 777;
    }
    Vector *device[3];
    for (Vector *&memory : device) {
        CHECK(cudaMalloc(&memory, vectors * sizeof(Vector)));
        CHECK(cudaMemset(memory, 0, vectors * sizeof(Vector)));
    }
    CHECK(cudaDeviceSynchronize());
    double touch = seconds() - began;

    unsigned blocks = (vectors + BLOCK - 1) / BLOCK;
    std::vector<double> transfers, times;
    for (int i = -1; i < TRANSFERS; i++) {
        began = seconds();
        CHECK(cudaMemcpy(device[0], a.data(), bytes, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(device[1], b.data(), bytes, cudaMemcpyHostToDevice));
        CHECK(cudaDeviceSynchronize());
        double there = seconds() - began;
        work<<<blocks, BLOCK>>>(device[0], device[1], device[2], vectors);
        CHECK(cudaGetLastError());
        CHECK(cudaDeviceSynchronize());
        began = seconds();
        CHECK(cudaMemcpy(c.data(), device[2], bytes, cudaMemcpyDeviceToHost));
        if (i >= 0)
            transfers.push_back(there + seconds() - began);
    }
    cudaEvent_t start, stop;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    for (int i = -WARM_UP; i < repeats; i++) {
        CHECK(cudaEventRecord(start));
        work<<<blocks, BLOCK>>>(device[0], device[1], device[2], vectors);
        CHECK(cudaEventRecord(stop));
        CHECK(cudaEventSynchronize(stop));
        float milliseconds;
        CHECK(cudaEventElapsedTime(&milliseconds, start, stop));
        if (i >= 0)
            times.push_back(milliseconds / 1000);
    }
    CHECK(cudaMemcpy(c.data(), device[2], bytes, cudaMemcpyDeviceToHost));

    double sum = 0, weighted = 0;
    for (long i = 0; i < n; i++) {
        sum += c[i];
        weighted += c[i] * (double)(i % 97 + 1);
    }
    cudaDeviceProp properties;
    int clock = 0, width = 0;  // kHz, bits
    CHECK(cudaGetDeviceProperties(&properties, 0));
    CHECK(cudaDeviceGetAttribute(&clock, cudaDevAttrMemoryClockRate, 0));
    CHECK(cudaDeviceGetAttribute(&width, cudaDevAttrGlobalMemoryBusWidth, 0));
    std::printf("{\"first_touch_s\": %.9f, ", touch);
    print("times_s", times);
    print("transfer_s", transfers);
    std::printf("\"device\": \"%s\", \"peak_gb_per_s\": %.1f, ", properties.name, 2e3 * clock * width / 8 / 1e9);
    std::printf("\"workers\": 1, \"sum\": %.0f, \"weighted\": %.0f}\n", sum, weighted);
    return 0;
}
