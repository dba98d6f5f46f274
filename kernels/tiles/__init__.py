"""Choose tiles: their sizes, the choice among them, what a multiprocessor holds. This needs no
torch.
"""
