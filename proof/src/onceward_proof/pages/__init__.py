"""What people look at afterwards: HTML pages that stand alone, their pictures, and the legs of the write-up.

proof.py, ablation.py, soak.py   one report each: what is in it
page.py, templates/              what all of them are
legs.py, sequence.py             docs/guarantees.md, leg by leg, with its diagrams drawn
story.py, tiles.py               one order's way, told; what became of the orders, per fault
pictures.py, canvas.py           the drawings, and what they are drawn with
"""
