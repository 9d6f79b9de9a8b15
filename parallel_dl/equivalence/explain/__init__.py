"""Where does a parallel run leave the serial one, and what is the likely cause?

trace.py       what passes through every layer in one step, on one rank
pieces.py      what each rank has of a tensor, and should have
causes.py      what a difference says: a factor, a summand, a slice out of place
divergence.py  the search: the first tensor that differs, and its cause
raced.py       races that stress has found in a run
"""
