"""The commands that the proof adds to `onceward`.

Entry points of the group `onceward.commands` name them.
"""
