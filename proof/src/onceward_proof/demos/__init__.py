"""Narrated demonstrations: each failure leg happens in front of the reader, and is counted; then it is closed.

    command.py    run one, tell it, judge it           narrator.py   what is told, and when
    stage.py      cluster, provider, the two sides     actor.py      a worker process, from the director's side
    player.py     a worker process, from the inside    parts.py      what the players do: the service's own code

Everything is real: Postgres, pgmq, the provider in its own process, the official SDK, processes that are killed or stopped.
A demonstration is a script (one file each): it lets workers run from one point to the next, and decides at the points.
"""

from typing import Final

# Name -> (module, what it shows).
DEMOS: Final = {
    "double-charge": ("double_charge", "the incident: a slow handler, a visibility timeout, two workers, two charges"),
    "crash-after-commit": ("crash_after_commit", "killed after the commit, before the ack: a redelivery, and the metric"),
    "dropped-publish": ("dropped_publish", "the order is committed, its event is dropped: lost, or still in the outbox"),
    "lost-ack": ("lost_ack", "stored, but the producer never hears of it and sends again: one id, or two"),
    "select-then-act": ("select_then_act", "two workers look, both see nothing, both charge; then INSERT-first"),
    "textbook": ("textbook", "'0 rows inserted: skip', and a crash between its two commits: the charge is lost"),
    "zombie": ("zombie", "a worker stopped past its lease wakes up after another has finished its message"),
    "key-expired": ("key_expired", "the provider has forgotten the key: a blind retry is a second charge"),
}
