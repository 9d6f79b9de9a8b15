"""Data sets in arrays, and each rank's share of every batch. NumPy only; knows neither network nor MPI.

Read in the order of the data flow:

    idx.py             the IDX format of MNIST
    dataset.py         four raw arrays, checked and scaled, are a Dataset
    places.py          in which folder a data set's files are: given, Debian's, the user's cache
    mnist.py           a folder of MNIST's four IDX files
    fashion_mnist.py   Fashion-MNIST from one of these places
    cifar10.py         CIFAR-10's binary version
    sources.py         load(): the shipped digits (data/), the two above, a folder of IDX files, an NPZ file
    loader.py          Loader: epoch -> global batch -> microbatch -> share of a rank
    arrivals.py        samples that come in at a limited rate
    download.py        one file over HTTP, resuming a partial download
    fetch.py           files into a folder: locked, downloaded, checked, put into place
"""

from parallel_dl.datasets.arrivals import Arrivals, Stream
from parallel_dl.datasets.dataset import Dataset
from parallel_dl.datasets.idx import read_idx
from parallel_dl.datasets.loader import Batch, Loader, Share
from parallel_dl.datasets.sources import load

__all__ = ["Arrivals", "Batch", "Dataset", "Loader", "Share", "Stream", "load", "read_idx"]
