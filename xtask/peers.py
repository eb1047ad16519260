"""Times what others do for one attention call, on the rows that `longwave bench attend --export` wrote.

Prints one JSON object a line: peer, ms_p50, ms_p95, error_mean, read_gb_per_s. `cargo xtask bench peers` runs it in turn
with `longwave bench attend`. Errors are against attention in float32 over the same rows.
"""

import argparse
import json
import math
import os
import struct
import time
from concurrent.futures import ThreadPoolExecutor

# PyTorch and faiss bring an OpenMP each, whose idle threads would spin in the way of the other's.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import numpy
import torch
import torch.nn.functional as functional

ELEMENTS = {"F16": numpy.float16, "F32": numpy.float32}


def tensors(path):
    """The arrays of a safetensors file, mapped."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return {
        name: numpy.memmap(
            path,
            dtype=ELEMENTS[entry["dtype"]],
            mode="r",
            offset=8 + length + entry["data_offsets"][0],
            shape=tuple(entry["shape"]),
        )
        for name, entry in entries.items()
    }


class Layer:
    """Keys and values [kv_heads, tokens, dim] in float16, queries [calls, kv_heads, group, dim] in float32."""

    def __init__(self, path):
        arrays = tensors(path)
        self.keys = torch.from_numpy(numpy.array(arrays["keys"]))
        self.values = torch.from_numpy(numpy.array(arrays["values"]))
        self.kv_heads, self.tokens, self.dim = self.keys.shape
        queries = torch.from_numpy(numpy.array(arrays["queries"]))
        self.queries = queries.reshape(len(queries), self.kv_heads, -1, self.dim)
        self.scale = 1 / math.sqrt(self.dim)

    def exact(self, query):
        """Attention in float32, head by head."""
        outputs = []
        for head in range(self.kv_heads):
            scores = query[head] @ self.keys[head].float().T * self.scale
            outputs.append(scores.softmax(-1) @ self.values[head].float())
        return torch.stack(outputs)


class Grouped:
    """Scaled-dot-product attention with the query heads of a group as rows of one head: its best form, since the keys of
    a head are then read once."""

    def __init__(self, layer, element):
        self.name = f"torch sdpa, grouped, {element}"
        self.element = getattr(torch, element)
        self.keys, self.values = (rows.to(self.element)[None] for rows in (layer.keys, layer.values))

    def __call__(self, query):
        return functional.scaled_dot_product_attention(query.to(self.element)[None], self.keys, self.values)[0]


class Plain(Grouped):
    """The call as one would write it."""

    def __init__(self, layer, element):
        super().__init__(layer, element)
        self.name = f"torch sdpa, enable_gqa, {element}"

    def __call__(self, query):
        heads = query.to(self.element).reshape(1, -1, 1, query.shape[-1])
        output = functional.scaled_dot_product_attention(heads, self.keys, self.values, enable_gqa=True)
        return output.reshape(query.shape)


class Retrieved:
    """IVF retrieval by inner product, one index a KV head over 16-bit keys, then exact attention over what each query head
    found. Heads are spread over `pool`, one thread each: that is faster than several threads for a head."""

    def __init__(self, layer, indexes, probes, rows, pool):
        self.name = f"faiss IVF{indexes[0].nlist}, {probes} probes, {rows} rows"
        self.layer, self.indexes, self.probes, self.rows, self.pool = layer, indexes, probes, rows, pool

    def __call__(self, query):
        return torch.stack(list(self.pool.map(self.head, range(len(self.indexes)), query)))

    def head(self, head, query):
        with torch.inference_mode():
            index = self.indexes[head]
            index.nprobe = self.probes
            _, found = index.search(query.numpy(), self.rows)
            found = torch.from_numpy(found)
            # -1 stands where the probed lists held fewer rows.
            missing, found = found < 0, found.clamp(min=0)
            keys = self.layer.keys[head][found].float()
            scores = (keys @ query[:, :, None])[:, :, 0] * self.layer.scale
            weights = scores.masked_fill(missing, -math.inf).softmax(-1)
            values = self.layer.values[head][found].float()
            return (weights[:, None] @ values)[:, 0]


def one_thread():
    """Of a thread that works on a head: it does not start others."""
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)


def build_indexes(layer, lists):
    indexes = []
    for head in range(layer.kv_heads):
        keys = layer.keys[head].float().numpy()
        quantizer = faiss.IndexFlatIP(layer.dim)
        index = faiss.IndexIVFScalarQuantizer(
            quantizer, layer.dim, lists, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        index.by_residual = False
        index.cp.max_points_per_centroid = 64
        index.train(keys)
        index.add(keys)
        indexes.append(index)
    return indexes


def milliseconds(call, *arguments):
    started = time.perf_counter()
    result = call(*arguments)
    return (time.perf_counter() - started) * 1e3, result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("layer", help="safetensors file that `longwave bench attend --export` wrote")
    parser.add_argument("--threads", type=int, default=0, help="0: as many as the machine has")
    parser.add_argument("--lists", type=int, default=512, help="lists of the IVF indexes")
    parser.add_argument("--probes", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--rows", type=int, default=512, help="rows that IVF retrieves for each query head")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
        faiss.omp_set_num_threads(options.threads)
    layer = Layer(options.layer)
    peers = [kind(layer, element) for kind in (Grouped, Plain) for element in ("bfloat16", "float16")]
    indexes = build_indexes(layer, options.lists)
    pool = ThreadPoolExecutor(torch.get_num_threads(), initializer=one_thread)
    rows = min(options.rows, layer.tokens)
    peers += [Retrieved(layer, indexes, probes, rows, pool) for probes in options.probes]

    buffer = torch.ones(min(layer.keys.numel() * 4, 256 << 20) // 8, dtype=torch.int64)
    times, errors, reads = {peer.name: [] for peer in peers}, {peer.name: [] for peer in peers}, []
    with torch.inference_mode():
        for number, query in enumerate(layer.queries):
            reference = layer.exact(query) if number < 4 else None
            for peer in peers:
                ms, output = milliseconds(peer, query)
                if number > 0:  # The first call sets things up.
                    times[peer.name].append(ms)
                if reference is not None:
                    error = (output.float() - reference).norm(dim=-1) / reference.norm(dim=-1)
                    errors[peer.name].append(error.mean().item())
            reads.append(milliseconds(buffer.sum)[0])
    read = buffer.numel() * 8 / numpy.median(reads) / 1e6
    for peer in peers:
        print(
            json.dumps(
                {
                    "peer": peer.name,
                    "ms_p50": float(numpy.median(times[peer.name])),
                    "ms_p95": float(numpy.percentile(times[peer.name], 95)),
                    "error_mean": float(numpy.mean(errors[peer.name])),
                    "read_gb_per_s": float(read),
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
