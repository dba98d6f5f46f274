"""A binary heap of numbers, ordered by a key of each."""

from moesim.compiled import compiled


@compiled()
def push(i, heap, size, key):
    """Put op i on a heap of the smallest key, and return its size."""
    at = size
    while at > 0 and key[heap[(at - 1) // 2]] > key[i]:
        heap[at] = heap[(at - 1) // 2]
        at = (at - 1) // 2
    heap[at] = i
    return size + 1


@compiled()
def pop(heap, size, key):
    """Take the first op off a heap, and return its size."""
    size -= 1
    i, at = heap[size], 0
    while 2 * at + 1 < size:
        below = 2 * at + 1
        if below + 1 < size and key[heap[below + 1]] < key[heap[below]]:
            below += 1
        if key[heap[below]] >= key[i]:
            break
        heap[at] = heap[below]
        at = below
    heap[at] = i
    return size
