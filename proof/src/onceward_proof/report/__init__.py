"""What is shown of a run.

tables.py    figures and tables, for all that follow
terminal.py  progress, tables and verdict; lines.py: lines that fit its width
pages/       the HTML pages
docs.py      the tables of docs/guarantees.md, from the runs that are kept
made.py      what a run was made with: commit, date, machine, versions, a checksum of the core
"""
