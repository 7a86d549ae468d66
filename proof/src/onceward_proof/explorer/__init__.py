"""`onceward explore`: every step of the protocol, tried in small, breadth first. Standard library only.

rules.py          what is explored: the production `step`, and the line that a planted bug changes
facts.py          everything that can happen in a modelled world, as data with its wording
message_state.py  all that the model knows of one message: workers, rows, copies in the queue, the provider's memory
statements.py     what each SQL statement does to the rows: the model of Postgres (tests hold it to the real one)
worker.py         what a worker's command can come to, and how its handler answers
environment.py    what nobody commands: leases lapse, copies come again, time passes, upkeep, redrives
outbox.py         the outbox, the lanes of the relay, and the sink
promises.py       what must be true
passages.py       where each search begins, and how far it goes
space.py          worlds as integers: two messages, the outbox, and what may still go wrong
search.py         breadth first over a space
story.py          the path to a broken world, in plain words
planted_bugs.py   bugs that must be found
report.py         the result, for a terminal and as JSON
"""
