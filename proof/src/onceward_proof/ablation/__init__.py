"""`onceward prove --ablate`: which layer holds what.

rows.py           the layers that are removed, what must show, and what did
layer_removal.py  how each is removed, inside a worker
"""
