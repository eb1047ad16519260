#!/usr/bin/env python3
"""Prints the cost study of gpu.md: bytes and operations of a decode step, and the least time that a machine's published
bandwidths leave for them. Everything is computed; nothing is measured."""

LAYERS, KV_HEADS, QUERY_HEADS, DIM = 32, 8, 32, 128  # a model of 8 billion parameters, f16 keys and values
WEIGHTS = 16e9
ROW = 2 * DIM * 2  # bytes of a key and a value
# Name: memory, its bandwidth, host link one way, host memory's bandwidth, dense f16 operations a second.
MACHINES = {
    "H100 SXM": (80e9, 3.35e12, 64e9, 307e9, 989e12),
    "A100 SXM": (80e9, 2.04e12, 32e9, 205e9, 312e12),
    "RTX 4090": (24e9, 1.01e12, 32e9, 90e9, 165e12),
}
HITS = 0.84  # of RetroInfer's clusters at a cache of 5 % (docs/gpu.md)


def schemes():
    """Name: (resident, read from device memory, moved or read from host memory) as shares of the KV bytes, rows scored."""
    retro_index = (2 * DIM * 2 + 4) / 16 / ROW  # centroid, value mean and count for 16 rows
    retro_read = (DIM * 2 + 4 + 0.232 * DIM * 2) / 16 / ROW + 0.018
    ladder_index = (2 * (DIM / 2 + 2) + 8) / 32 / ROW + (DIM / 8 + 1) / ROW  # coded centroid and mean; sketches
    return {
        "full": (1.0, 1.0, 0.0, 1.0),
        "RetroInfer": (retro_index + 0.05, retro_read - 0.018 * (1 - HITS), 0.018 * (1 - HITS), 1 / 16 + 0.018),
        "longwave": (ladder_index + 0.05, 0.022 * 0.6, 0.022 * 0.4, 1 / 32 + 0.17 / 4 + 0.035),
    }


def floor_ms(machine, scheme, kv, batch):
    memory, device, link, host, rate = MACHINES[machine]
    resident, read, rest, scored = schemes()[scheme]
    fits = min(1.0, (memory - WEIGHTS) / (resident * kv))
    on_device = read * kv * fits
    # What does not fit is read where it lies; misses of RetroInfer cross the link, ours are read by the CPU.
    in_place = read * kv * (1 - fits) + (rest * kv if scheme == "longwave" else 0)
    moved = rest * kv if scheme == "RetroInfer" else 0
    operations = 4 * DIM * QUERY_HEADS * LAYERS * (kv / (ROW * KV_HEADS * LAYERS)) * scored
    return max(on_device / device, in_place / host, moved / link, operations / rate) * 1e3, fits


print("| context | batch | scheme | bytes | operations | " + " | ".join(MACHINES) + " |")
print("|---|---|---|---|---|" + "---|" * len(MACHINES))
for tokens in (32768, 131072, 1048576):
    for batch in (1, 8, 64):
        kv = tokens * batch * LAYERS * KV_HEADS * ROW
        for scheme, (_, read, rest, scored) in schemes().items():
            cells = []
            for machine in MACHINES:
                ms, fits = floor_ms(machine, scheme, kv, batch)
                cells.append(f"{ms:.3g} ms" + ("" if fits == 1 else f" ({fits:.0%})"))
            operations = 4 * DIM * QUERY_HEADS * LAYERS * tokens * batch * scored
            print(f"| {tokens // 1024}K | {batch} | {scheme} | {(read + rest) * kv / 1e9:.3g} GB | {operations / 1e9:.3g} G | " + " | ".join(cells) + " |")
