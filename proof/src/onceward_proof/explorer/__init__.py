"""`onceward explore`: every step of the protocol, tried in small, breadth first. Standard library only.

rules.py     what is on trial: the production `step`, and what a planted bug may change
cell.py      the data: one message with its workers, rows, copies in the queue, and the provider's memory
tables.py    what each statement does to the rows: the model of Postgres (tests hold it to the real one)
worker.py    what a worker's command may come to, and what its handler makes of that
outside.py   what happens by itself: leases lapse, copies come again, clocks pass, upkeep, redrive
outbox.py    the outbox, the relay's lanes and the sink
promises.py  what must be true
search.py    breadth first over worlds; a world is two cells, the outbox and what may still go wrong
story.py     the way to a broken world, in plain words
planted.py   bugs that must be found
"""
