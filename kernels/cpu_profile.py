"""Stand-alone primitives measured."""
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from moesim_kernels.cpu_layer import Sentinel, activate, add_up, align, choose, measuring, thread_clock
from torch.nn.functional import grouped_mm

Array = np.ndarray
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    sizes: dict
    call: Callable[[], object]
    small: Callable[[], object]
    write: Callable[[], object] = lambda: None
    cold: bool = True


class Bench:
    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.sentinel = Sentinel()
        self.clock = thread_clock()
        self.peak = {}

    def time(self, case: Case, repeats: int) -> list[float]:
        case.write()
        case.call()
        seconds = []
        for _ in range(repeats):
            if case.cold:
                self.sentinel.flush()
            case.write()
            case.small()
            start = self.clock()
            case.call()
            seconds.append(self.clock() - start)
        return seconds

    def size(self, low: float, high: float, multiple: int = 1) -> int:
        exact = math.exp(self.rng.uniform(math.log(low), math.log(high)))
        return max(round(exact / multiple), 1) * multiple

    def gemm(self, name: str) -> Case:
        dtype = DTYPES[name]
        while True:
            k, n = (self.size(32, 2048, 16) for _ in range(2))
            experts, rows = self.size(1, 64), self.size(1, 2048)
            flops = 2*experts * rows * n * k
            if flops < 4e-3 * self.peak[name] and experts * n * k * dtype.itemsize <= 64<<20 and experts * rows * (n + k) * dtype.itemsize <= 64 << 20:
                break
        other = int(rows * self.rng.uniform(0.1, 1)) + 1
        counts = np.where(self.rng.random(experts) < 0.5, rows, other) * (self.rng.random(experts) < 0.9)
        counts[0] = rows
        offs = torch.from_numpy(counts.cumsum()).int()
        pool = self.sentinel.buffer.view(dtype)
        at = int(self.rng.integers(0, pool.numel() - experts * n * k))//64*64
        w = pool[at:at + experts * n * k].view(experts, n, k).transpose(1, 2)
        x = torch.randn(int(counts.sum()), k, generator=self.generator).to(dtype)
        xs, ws = torch.ones(16, 16, dtype=dtype), torch.ones(1, 16, 16, dtype=dtype)
        o = torch.full((1,), 16, dtype=torch.int32)
        return Case(sizes=dict(counts=counts, n=n, k=k), call=lambda: grouped_mm(x, w, offs=offs),
                    small=lambda: grouped_mm(xs, ws, offs=o), write=lambda: x.neg_(), cold=self.rng.random() < 0.75)

    def top_k(self) -> Case:
        while True:
            t, e, k = self.size(8, 4096), self.size(2, 1024), self.size(1, 16)
            if k <= e and t * e <= 1 << 19: break
        x, small = torch.empty(t, e), torch.randn(2, 4)
        return Case(sizes=dict(rows=t, columns=e, k=k), call=lambda: choose(x, k), small=lambda: choose(small, 2),
                    write=lambda: x.normal_(generator=self.generator))

    def align(self) -> Case:
        p, e = self.size(8, 65536), self.size(2, 1024)
        ids, small = torch.empty(p, dtype=torch.int64), torch.arange(8)
        return Case(sizes=dict(rows=p, experts=e), call=lambda: align(ids, e, 2), small=lambda: align(small, 8, 2),
                    write=lambda: ids.random_(0, e, generator=self.generator))

    def _moved(self, name):
        dtype = DTYPES[name]
        while True:
            t, k, h = self.size(8, 4096), self.size(1, 8), self.size(32, 2048, 16)
            if t * k * h * dtype.itemsize <= 48 << 20: break
        token = torch.randperm(t * k, generator=self.generator) // k
        return dtype, t, k, h, token

    def gather(self, name: str) -> Case:
        dtype, t, k, h, token = self._moved(name)
        x, small = torch.ones(t, h, dtype=dtype), torch.ones(4, 16, dtype=dtype)
        return Case(sizes=dict(rows=t * k, row_bytes=h * dtype.itemsize,t=t,k=k,h=h), call=lambda: x.index_select(0, token),
                    small=lambda: small.index_select(0, torch.arange(2)), write=lambda: x.neg_())

    def weighted_sum(self, name: str) -> Case:
        dtype, t, k, h, token = self._moved(name)
        y, w = torch.ones(t * k, h, dtype=dtype), torch.rand(t * k)
        ys = torch.ones(4, 16, dtype=dtype)
        order=torch.randperm(t*k)
        return Case(sizes=dict(rows=t * k, tokens=t, h=h), call=lambda: add_up(y, w[order], token, t),
                    small=lambda: add_up(ys, w[:4][torch.arange(4)%len(w)], torch.arange(4) // 2, 2), write=lambda: y.neg_())

    def activation(self, name: str) -> Case:
        dtype = DTYPES[name]
        while True:
            p, i = self.size(8, 32768), self.size(16, 2048, 16)
            if p * i * dtype.itemsize <= 32 << 20: break
        up = torch.randn(p, 2 * i, generator=self.generator).to(dtype)
        us = torch.ones(2, 32, dtype=dtype)
        return Case(sizes=dict(rows=p, width=i), call=lambda: activate(up, i), small=lambda: activate(us, 16),
                    write=lambda: up.neg_())
