"""Four ways to convolve images, on NumPy arrays; the survey's table as code.

(Ben-Nun and Hoefler, "Demystifying Parallel and Distributed Deep Learning", arXiv 1802.09941, section 4.)

To read in this order:

    geometry.py   the sizes of one convolution, and which of them fit together
    rows.py       how images lie in memory while they are convolved: (height, channels, width, samples)
    direct.py     the definition: a sum over the kernel's taps
    im2col.py     one matrix product per row of the result
    fft.py        products of spectra
    winograd.py   fewer multiplications on small tiles: F(2x2, 3x3) and F(4x4, 3x3)
    methods.py    all of them by name, and which one `auto` takes
    count.py      how many multiplications each makes: by formula, and counted in a run

Every method is a function (rows of x, weight, geometry) -> `Convolved`: the result and the pullbacks.
"""

from parallel_dl.convolution.count import count_multiplications, multiplications
from parallel_dl.convolution.geometry import Geometry, Pair, pair, require_groups
from parallel_dl.convolution.methods import METHODS, NAMES, choose, require_able
from parallel_dl.convolution.rows import Convolved, from_rows, to_rows

__all__ = [
    "METHODS",
    "NAMES",
    "Convolved",
    "Geometry",
    "Pair",
    "choose",
    "count_multiplications",
    "from_rows",
    "multiplications",
    "pair",
    "require_able",
    "require_groups",
    "to_rows",
]
