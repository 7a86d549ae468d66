"""What is shown of a run.

tables.py    figures and tables, for all that follow
terminal.py  progress, tables and verdict; lines.py: lines that fit its width
pages/       the HTML pages
docs.py      the tables of docs/guarantees.md
"""
