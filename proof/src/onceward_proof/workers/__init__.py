"""The worker processes of prove, soak, demonstrations and sweep: what one is told, what it does, what it reports.

setting.py     what a worker is told before it starts
reports.py     the words on the line between a worker (or the provider) and what controls it
line.py        the worker's end of that line: report and go on, or report and wait
watched.py     Source, Sink and card whose every boundary is reported
worker.py      one worker: its line and its connections; what is imported before it is forked
roles.py       what each worker does: producer, charge, ledger, relay
tutorial.py    the plain client of each broker, for the service as its tutorials write it
pool.py        several threads of a variant that brings no loop, and what they prefetch
fork.py        a child that does one piece of work
supervisor.py  a warm process that forks workers in milliseconds, reaps them, and reports both
"""

import sys

from onceward_proof.bundled import payments_folder

# The reference service is not an installed package. From here on `payments` can be imported, in every process that works.
sys.path.insert(0, str(payments_folder()))
