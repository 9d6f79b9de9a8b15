"""Equal, or how far apart? Two runs, with magnitudes to judge an error against, or arrays without.

runs.py   a parallel run and the serial one
files.py  two sets of arrays by name, from safetensors files, also in shards
"""
