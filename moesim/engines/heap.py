"""A binary heap of numbers that are ordered by a key of each, whose keys may change."""

from moesim.compiled import compiled, with_caller


@compiled(with_caller)
def push(i, heap, size, key, place):
    """Put a number on a heap.

    Args:
        i: The number.
        heap: ndarray of integers: its first ``size`` entries are the heap, the smallest key first.
        size: Number of entries.
        key: ndarray: key of every number.
        place: ndarray of integers: where in the heap every number is.

    Returns:
        The new size.
    """
    heap[size] = i
    place[i] = size
    _rise(size, heap, key, place)
    return size + 1


@compiled(with_caller)
def pop(heap, size, key, place):
    """Take the number with the smallest key off a heap, and return the new size."""
    heap[0] = heap[size - 1]
    place[heap[0]] = 0
    _sink(0, heap, size - 1, key, place)
    return size - 1


@compiled(with_caller)
def moved(i, heap, size, key, place):
    """Put a number of a heap into its place after its key changed."""
    _rise(place[i], heap, key, place)
    _sink(place[i], heap, size, key, place)


@compiled(with_caller)
def reorder(heap, size, key, place):
    """Put all numbers of a heap into their places after many keys changed."""
    for at in range(size // 2 - 1, -1, -1):
        _sink(at, heap, size, key, place)


@compiled(with_caller)
def _rise(at, heap, key, place):
    i = heap[at]
    while at > 0:
        above = (at - 1) // 2
        if key[heap[above]] <= key[i]:
            break
        heap[at] = heap[above]
        place[heap[at]] = at
        at = above
    heap[at] = i
    place[i] = at


@compiled(with_caller)
def _sink(at, heap, size, key, place):
    i = heap[at]
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and key[heap[below + 1]] < key[heap[below]]:
            below += 1
        if key[heap[below]] >= key[i]:
            break
        heap[at] = heap[below]
        place[heap[at]] = at
        at = below
    heap[at] = i
    place[i] = at
