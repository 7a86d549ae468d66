"""`onceward prove --queue-settings`: what no setting of the queue changes.

rows.py     the settings, what must show under each, and what did
command.py  the command
"""
