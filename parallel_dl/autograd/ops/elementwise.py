"""Element-wise operations, with NumPy's broadcasting, each beside its pullbacks.

An operand may be a number; its pullback, which asks for the shape, is only called if it is a tensor's array.
"""

import numpy as np

from parallel_dl.autograd.tape import once, primitive


def unbroadcast(g, shape):
    """Sums g over the axes along which an operand of this shape was broadcast: the adjoint of broadcasting."""
    if g.shape == shape:
        return g
    added = g.ndim - len(shape)
    stretched = tuple(axis + added for axis, length in enumerate(shape) if length == 1 and g.shape[axis + added] != 1)
    return g.sum(axis=(*range(added), *stretched)).reshape(shape)


@primitive
def add(a, b):
    """a + b."""
    return np.add(a, b), (lambda g: unbroadcast(g, a.shape), lambda g: unbroadcast(g, b.shape))


@primitive
def subtract(a, b):
    """a - b."""
    return np.subtract(a, b), (lambda g: unbroadcast(g, a.shape), lambda g: unbroadcast(-g, b.shape))


@primitive
def multiply(a, b):
    """a * b, element by element."""
    return np.multiply(a, b), (lambda g: unbroadcast(g * b, a.shape), lambda g: unbroadcast(g * a, b.shape))


@primitive
def divide(a, b):
    """a / b."""
    quotient = np.divide(a, b)
    per_b = once(lambda g: g / b)  # both pullbacks begin with it
    return quotient, (
        lambda g: unbroadcast(per_b(g), a.shape),
        lambda g: unbroadcast(-per_b(g) * quotient, b.shape),
    )


@primitive
def negative(a):
    """-a."""
    return np.negative(a), (lambda g: -g,)


@primitive
def absolute(a):
    """|a|; its gradient at 0 is 0."""
    return np.absolute(a), (lambda g: g * np.sign(a),)


def _power(a, b):
    # NumPy's general power is a hundred times slower than a product
    if isinstance(b, (int, float)) and b in (1, 2, 3):
        return a if b == 1 else a * a if b == 2 else a * a * a
    return np.power(a, b)


@primitive
def power(a, b):
    """a ** b. The gradient of b needs a >= 0; where a is 0 it is 0."""
    value = _power(a, b)

    def gradient_a(g):
        # where b is 0 the gradient is 0, also at a = 0, whose power -1 is infinite
        lower = np.where(np.equal(b, 0), 0, b - 1) if isinstance(b, np.ndarray) else b - 1 if b else 0
        return unbroadcast(g * (b * _power(a, lower)), a.shape)

    def gradient_b(g):
        logarithm = np.log(np.where(np.equal(a, 0), 1, a), dtype=value.dtype)
        return unbroadcast(g * value * logarithm, b.shape)

    return value, (gradient_a, gradient_b)


@primitive
def exp(a):
    """e ** a."""
    value = np.exp(a)
    return value, (lambda g: g * value,)


@primitive
def log(a):
    """The natural logarithm of a."""
    return np.log(a), (lambda g: g / a,)


@primitive
def sqrt(a):
    """The square root of a."""
    value = np.sqrt(a)
    return value, (lambda g: g * 0.5 / value,)


@primitive
def tanh(a):
    """The hyperbolic tangent of a."""
    value = np.tanh(a)
    return value, (lambda g: g * (1 - value * value),)


@primitive
def sigmoid(a):
    """1 / (1 + e**-a), as (1 + tanh(a/2)) / 2, which cannot overflow."""
    value = np.tanh(np.multiply(a, 0.5))
    value = 0.5 * value + 0.5
    return value, (lambda g: g * (value * (1 - value)),)


@primitive
def relu(a):
    """max(a, 0); its gradient at 0 is 0."""
    value = np.maximum(a, 0)
    return value, (lambda g: g * (value > 0),)


@primitive
def gelu(a):
    """The Gaussian error linear unit of a, tanh form (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2)."""
    scale = 0.7978845608028654  # sqrt(2/pi)
    square = a * a
    t = np.tanh(scale * a * (1 + 0.044715 * square))
    value = 0.5 * a * (1 + t)
    return value, (lambda g: g * (0.5 * (1 + t) + 0.5 * a * (1 - t * t) * (scale * (1 + 3 * 0.044715 * square))),)


def _extremum(function, a, b):
    value = function(a, b)
    # an operand's part of g: 1 where it alone is the extremum, 1/2 at a tie
    share_of_a = once(lambda g: (0.5 * (np.equal(value, a) + (1.0 - np.equal(value, b)))).astype(value.dtype))
    return value, (
        lambda g: unbroadcast(g * share_of_a(g), a.shape),
        lambda g: unbroadcast(g * (1 - share_of_a(g)), b.shape),
    )


@primitive
def maximum(a, b):
    """The larger of a and b, element by element; at a tie each gets half of the gradient."""
    return _extremum(np.maximum, a, b)


@primitive
def minimum(a, b):
    """The smaller of a and b, element by element; at a tie each gets half of the gradient."""
    return _extremum(np.minimum, a, b)
