"""Vector addition, c = a + b, in Python on the first GPU.

    python add_gpu.py torch_cuda|numba_cuda ELEMENTS REPEATS TYPE

Prints one line of JSON, as add.py does. Repetitions are timed on the device; a transfer is that of a and b to the
device and of c back, from and to pageable memory.
"""

import json
import sys
import time

from add import TRANSFERS, WARM_UP, record, vectors


def measured(size, dtype, repeats, upload, add, download, synchronize, event):
    """Touch, transfer, add.

    Args:
        size: elements.
        dtype: their type.
        repeats: how many additions are timed.
        upload: NumPy vectors -> vectors on the device.
        add: adds vectors on the device.
        download: vector on the device -> NumPy vector.
        synchronize: waits for the device.
        event: records an event of the device and returns it; its elapsed_time(later event) is in milliseconds.
    """
    upload(*vectors(dtype, 0, 1))  # starts CUDA, which is no part of the first touch
    synchronize()
    began = time.perf_counter()
    a, b, c = vectors(dtype, 0, size)
    device = upload(a, b, c)
    synchronize()
    first_touch = time.perf_counter() - began
    transfers, times = [], []
    for _ in range(1 + TRANSFERS):
        began = time.perf_counter()
        device[:2] = upload(a, b)
        synchronize()
        there = time.perf_counter() - began
        add(*device)
        synchronize()
        began = time.perf_counter()
        c = download(device[2])
        transfers.append(there + time.perf_counter() - began)
    for _ in range(WARM_UP + repeats):
        start = event()
        add(*device)
        stop = event()
        synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return record(download(device[2]), first_touch, times[WARM_UP:], transfers[1:])


def torch_cuda(size, repeats, dtype):
    import torch

    def event():
        made = torch.cuda.Event(enable_timing=True)
        made.record()
        return made

    return measured(
        size, dtype, repeats,
        upload=lambda *hosts: [torch.from_numpy(host).cuda() for host in hosts],
        add=lambda a, b, c: torch.add(a, b, out=c),
        download=lambda values: values.cpu().numpy(),
        synchronize=torch.cuda.synchronize,
        event=event,
    )  # fmt: skip


def numba_cuda(size, repeats, dtype):
    from numba import cuda

    @cuda.jit
    def kernel(a, b, c):
        i = cuda.grid(1)
        if i < c.size:
            c[i] = a[i] + b[i]

    def event():
        made = cuda.event()
        made.record()
        return made

    block = 256
    return measured(
        size, dtype, repeats,
        upload=lambda *hosts: [cuda.to_device(host) for host in hosts],
        add=lambda a, b, c: kernel[-(-size // block), block](a, b, c),
        download=lambda values: values.copy_to_host(),
        synchronize=cuda.synchronize,
        event=event,
    )  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])))
