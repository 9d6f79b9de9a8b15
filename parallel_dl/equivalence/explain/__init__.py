"""Where does a parallel run diverge from the serial one, and what is the likely cause?

trace.py         what passes through every layer in one step, on one rank
pieces.py        what each rank has of a tensor, and should have
causes.py        what a difference of weights, samples, the loss, gradients, an update says
layer_causes.py  what a difference of a layer's output, or of its gradient, says
forward.py       is it the way to the layer, the layer itself, or the version of its weights?
search.py        the first tensor that differs, in the order of the computation
divergence.py    both runs once more, traced at the step in which they part, and searched
raced.py         races that stress has found in a run
"""
