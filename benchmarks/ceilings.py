"""What the machine can do at most: multiply-adds out of registers, and reading from each level of memory."""

from __future__ import annotations

from collections.abc import Iterator

from fusedlstm import _core

from .harness import Plan, Record, peak_of, read_bandwidth

BENCHMARK = "ceilings"
PEAKS = {
    "float32 multiply-add": "fma32",
    "float64 multiply-add": "fma64",
    "bfloat16 by AVX512-BF16": "avx512_bf16",
    "bfloat16 by AMX": "amx_bf16",
    "int8 by AVX512-VNNI": "avx512_vnni",
}
SMALLEST_MEMORY = 1 << 28  # bytes of all threads together that no cache holds, whatever it says of itself


def buffers(threads: int) -> dict[str, int]:
    """Bytes that each thread reads again and again, by the level that holds them."""
    l1, l2, l3 = _core.cpu_info()["cache_bytes"] or (0, 0, 0)
    sizes = {}
    if l1:
        sizes["reading L1"] = l1 // 2
    if l2:
        sizes["reading L2"] = l2 // 2
    if l3 > 2 * threads * l2:  # else there is no size between the two
        sizes["reading L3"] = min(4 * l2, l3 // (2 * threads)) if l2 else l3 // (2 * threads)
    sizes["reading memory"] = max(4 * l3, SMALLEST_MEMORY) // threads
    return sizes


def run(plan: Plan) -> Iterator[Record]:
    for case, instructions in PEAKS.items():
        if plan.wants(BENCHMARK, case):
            value = peak_of(instructions, plan.threads)
            yield {"benchmark": BENCHMARK, "case": case, "ceiling": value, "unit": "GF/s"}
    for level, size in buffers(plan.threads).items():
        case = f"{level}, {_bytes(size)} each"
        if plan.wants(BENCHMARK, case):
            value = read_bandwidth(plan.threads, size)
            yield {"benchmark": BENCHMARK, "case": case, "ceiling": value, "unit": "GB/s"}


def _bytes(size: int) -> str:
    return f"{size >> 10} KiB" if size < 1 << 20 else f"{size >> 20} MiB"
