"""`onceward prove --ablate`: which layer holds what.

harms.py          what is counted of a row
rows.py           the layers that are removed, what must show, and what did
layer_removal.py  how each is removed, inside a worker
"""
