"""Narrated demonstrations: each failure leg happens in front of the reader, and is counted; then it is closed.

    command.py          run one, tell it, judge it
    demonstration.py    the two sides: database, provider, workers, claims
    worker_process.py   a worker process, from the outside: what it reported, where it waits, what can be done to it
    roles.py            what a worker does here that no variant of the proof does
    narrator.py         what is told, and when

Everything is real: Postgres, pgmq, the provider in its own process, the official SDK, processes that are killed or stopped.
A demonstration is a script (one file each) with two functions, `naive` and `hardened`: each lets workers run from one
boundary to the next, decides there, claims, and returns what was counted.
"""

from typing import Final

# Name -> (module, what it shows).
DEMOS: Final = {
    "double-charge": ("double_charge", "the incident: a slow handler, a visibility timeout, two workers, two charges"),
    "crash-after-commit": ("crash_after_commit", "killed after the commit, before the ack: a redelivery, and the metric"),
    "dropped-publish": ("dropped_publish", "the order is committed, its event is dropped: lost, or still in the outbox"),
    "lost-confirmation": (
        "lost_confirmation",
        "stored, but the producer never hears of it and sends again: one id, or two",
    ),
    "select-then-act": ("select_then_act", "two workers look, both see nothing, both charge; then INSERT-first"),
    "textbook": ("textbook", "'0 rows inserted: skip', and a crash between its two commits: the charge is lost"),
    "zombie": ("zombie", "a worker stopped past its lease wakes up after another has finished its message"),
    "key-expired": ("key_expired", "the provider has forgotten the key: a blind retry is a second charge"),
}

# What a demonstration was called before; still accepted.
FORMER_NAMES: Final = {"lost-ack": "lost-confirmation"}
