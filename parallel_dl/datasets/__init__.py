"""Data sets in arrays, and each rank's share of every batch. NumPy only; knows neither network nor MPI.

Read in the order of the data flow:

    files.py     open a file, or say in one line why not
    idx.py       the IDX format of MNIST
    dataset.py   four raw arrays, checked and scaled, are a Dataset
    sources.py   load(): the shipped digits (data/), a folder of IDX files, an NPZ file
    loader.py    Loader: epoch -> global batch -> microbatch -> share of a rank
"""

from parallel_dl.datasets.dataset import Dataset
from parallel_dl.datasets.idx import read_idx, write_idx
from parallel_dl.datasets.loader import Batch, Loader, Share
from parallel_dl.datasets.sources import load

__all__ = ["Batch", "Dataset", "Loader", "Share", "load", "read_idx", "write_idx"]
