"""What can go wrong, grouped by what the caller must do.

    OncewardError               what Onceward itself finds wrong
    ├── UsageError              fix the code or the configuration
    │   ├── NotInTransaction    `conn` would commit this write on its own
    │   └── SchemaMismatch      run `onceward migrate`, or run newer code
    ├── TransportError          try again: the queue did not confirm
    ├── ConflictError           same id, another payload: a person decides
    ├── UnknownOutcome          the provider's outcome is not known: a look-up or a person decides
    ├── LeaseLost               another worker owns this message now: stop, touch nothing
    └── EffectRefused           the provider said no, definitely (card declined): handle it, or the message is parked

    Signal                      not errors: what a handler raises to steer its message
    ├── Defer                   give it back for a while; costs no attempt
    └── Reject                  park it now

    MalformedMessage            fix what makes the message; one that comes from a queue is parked

`MalformedMessage` stands outside the tree: it is a ValueError, as `Message(...)` raises for any value that it cannot take,
and it is defined beside `Message`, in `onceward.message`.

psycopg's errors are never wrapped: what the driver raises is what the caller sees.
"""


class OncewardError(Exception):
    """The root of every error that Onceward itself raises."""


class UsageError(OncewardError):
    """The code or its configuration is wrong: trying again cannot help."""


class NotInTransaction(UsageError):
    """The connection is in autocommit mode outside a transaction: the row would be committed on its own."""


class SchemaMismatch(UsageError):
    """The database's schema is missing, older or newer than this code."""


class TransportError(OncewardError):
    """The queue did not confirm: the same call may be tried again."""


class ConflictError(OncewardError):
    """Two facts under one id, or two answers to one effect: one is wrong, and only a person can tell which."""


class UnknownOutcome(OncewardError):
    """An effect may or may not have happened at the provider: a look-up or a person decides, never a retry."""


class LeaseLost(OncewardError):
    """This worker may no longer act for the message: nothing that it still does can count.

    Another worker has taken it over, its lease has lapsed before an effect, or its commit was not confirmed.
    """


class EffectRefused(OncewardError):
    """The provider refused definitely; `answer` is its recorded, plain-JSON reason."""

    def __init__(self, answer: object) -> None:
        # The arguments as they came, and the text made from them: pickle calls the class with `args` again.
        super().__init__(answer)
        self.answer = answer

    def __str__(self) -> str:
        return f"the provider refused: {self.answer}"


class Signal(Exception):
    """What a handler raises to steer its message; not an error, and outside the tree of errors."""


class Defer(Signal):
    """Give the message back and take it again in `delay_seconds`; costs no attempt."""

    def __init__(self, delay_seconds: float) -> None:
        super().__init__(delay_seconds)
        self.delay_seconds = delay_seconds

    def __str__(self) -> str:
        return f"deferred for {self.delay_seconds} s"


class Reject(Signal):
    """Park the message now, with `reason`; it is not retried."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
