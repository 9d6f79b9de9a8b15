"""Equal, or how far apart? Two runs, with magnitudes to judge an error against, or arrays without.

runs.py      a parallel run and the serial one
patterns.py  what a difference looks like: a factor, slices in another order, a missing summand
arrays.py    two sets of arrays by name
files.py     the same from safetensors files, also in shards
"""
