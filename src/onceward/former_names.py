"""What was called otherwise before: code that still uses such a name gets an error with the new one."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

# What `onceward` itself offered.
NAMES: Final = {
    "Redrive": "onceward.Decided",
    "Refused": "onceward.EffectRefused",
    "Taking": "onceward.Take",
}
MODULES: Final = {
    "delivery": "onceward.protocol.delivery",
    "dispatch": "onceward.protocol.relay",
    "effect": "onceward.protocol.delivery",
    "embedded": "onceward.testing.postgres",
    "intent": "onceward.intents",
    "loop": "onceward.consumer_loop",
    "nudge": "onceward.outbox",
    "numbering": "onceward.outbox",
    "once": "onceward.perform",
    "proof": "onceward_proof, a distribution of its own: pip install 'onceward[prove]'",
    "relay": "onceward.relay_loop",
    "rows": "onceward.transactions",
    "state": "onceward.protocol.delivery",
    "upkeep": "onceward.day_partitions",
}


def now_called(name: str) -> str:
    """Where `onceward.<name>` is now, as a sentence; '' when there never was such a name."""
    place = NAMES.get(name) or MODULES.get(name)
    return f"onceward.{name} is now {place}" if place else ""


class FormerNames:
    """The last finder of all: it is asked only for modules of ours that nobody else has found."""

    @classmethod
    def find_spec(
        cls, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """None: unknown here, too. Raises ImportError for a module that has moved, and for `from onceward import Refused`.

        Python tries the latter as a module once the package has no such attribute; a plain ImportError is what it then
        passes on, where a ModuleNotFoundError would become "cannot import name".
        """
        del path, target
        package, _, name = fullname.partition(".")
        sentence = now_called(name.partition(".")[0]) if package == "onceward" else ""
        if sentence:
            raise ImportError(sentence, name=fullname)
        return None


def install() -> None:
    """Imports of former names are answered; once, however often it is called."""
    if FormerNames not in sys.meta_path:
        sys.meta_path.append(FormerNames)
