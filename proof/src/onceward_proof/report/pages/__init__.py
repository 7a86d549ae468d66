"""What people look at afterwards: HTML pages that stand alone, their pictures, and the legs of the write-up.

proof.py, ablation.py, soak.py, queue_settings.py   one report each: what is in it
page.py, templates/              what all of them are
legs.py, sequence.py             docs/guarantees.md, leg by leg, with its diagrams drawn
story.py, lanes.py               one order's way: which, step by step, and as a picture
orders.py                        what became of the orders that bore a fault
picture.py                       the templates, and the ticks of an axis
"""
