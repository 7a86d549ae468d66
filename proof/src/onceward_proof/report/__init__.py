"""What is shown of a run.

tables.py    figures and tables, for all that follow
terminal.py  progress, tables and verdict; lines.py: lines that fit its width
pages/       the HTML pages
docs.py      the tables of the documentation, from the runs that are kept
kept_runs.py which runs those are, and the command that makes each
made.py      what a run was made with: commit, date, machine, versions, a checksum of the core
"""
