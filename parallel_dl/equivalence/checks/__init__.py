"""What `verify` checks beyond the training steps.

batches.py    are the ranks' shares the batches?
counted.py    do ranks hold and send what the plan of a layout says?
fitted.py     does `Trainer.fit` make the same updates?
calls.py      the communicator's calls on arrays, by their definition
movements.py  the differentiable movements: by their definition, and the adjoint test
"""
