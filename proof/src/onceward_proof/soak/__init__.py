"""`onceward prove --for 30m`: orders and faults without end.

run.py       the command, its rolling evidence and its verdict
endless.py   the schedule that goes on
watch.py     the checker, while it runs
measure.py   memory, connections, tables, WAL; and whether any of it grows without bound
"""
