"""`onceward prove --every-syscall`: one delivery and one relay pass, killed at each of their system calls.

run.py                the command
trace.py              strace: counts the calls, kills at the n-th
payments_at_rest.py   the one database, queue and provider that all of it happens in
ambiguous.py          a COMMIT whose answer is cut off, on either side of the server's receiving it
"""
