"""`onceward prove --for 30m`: orders and faults without end.

run.py       the command, its rolling evidence and its verdict
endless.py   the schedule that goes on
watch.py     the checker, while it runs
due_day.py   a day that the consumers' upkeep must drop meanwhile
measure.py   memory, connections, tables, WAL; and whether any of it grows without bound
"""
