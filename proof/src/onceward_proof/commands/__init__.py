"""The commands that the proof adds to `onceward`; entry points of the group `onceward.commands` name them."""
