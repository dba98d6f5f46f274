"""The heap keeps the smallest key first, whatever changes, compiled and plain."""

import numpy as np
import pytest

from moesim.engines import heap


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_it_sorts_changing_keys(seed, plain, monkeypatch):
    for name in ("push", "pop", "moved", "reorder", "_rise", "_sink"):
        function = getattr(heap, name)
        monkeypatch.setattr(heap, name, function.py_func if plain else function.compiled)
    rng = np.random.default_rng(seed)
    count = 40
    key, place = rng.random(count), np.zeros(count, np.int64)
    numbers, size = np.zeros(count, np.int64), 0
    for i in range(count):
        size = heap.push(i, numbers, size, key, place)
    for i in rng.integers(0, count, 20):
        key[i] = rng.random()
        heap.moved(i, numbers, size, key, place)
    key[:] = rng.permutation(key)
    heap.reorder(numbers, size, key, place)
    assert (numbers[place] == np.arange(count)).all()
    taken = []
    while size:
        taken.append(numbers[0])
        size = heap.pop(numbers, size, key, place)
    assert key[taken].tolist() == sorted(key.tolist())
