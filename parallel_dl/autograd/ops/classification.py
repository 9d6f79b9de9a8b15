"""log_softmax, softmax, and losses of class scores: cross-entropy over all classes, logistic loss for each class."""

import numpy as np

from parallel_dl.autograd.tape import primitive
from parallel_dl.errors import InputError


def _shifted(logits, axis):
    """The logits minus their maximum: the same softmax, and exp cannot overflow."""
    return logits - logits.max(axis=axis, keepdims=True, initial=-np.inf)  # initial: for no classes at all


@primitive
def log_softmax(logits, *, axis=-1):
    """logits - log(sum(exp(logits))) along `axis`."""
    value = _shifted(logits, axis)
    if value.size:
        value -= np.log(np.exp(value).sum(axis=axis, keepdims=True))
    return value, (lambda g: g - np.exp(value) * g.sum(axis=axis, keepdims=True),)


@primitive
def softmax(logits, *, axis=-1):
    """exp(logits) / sum(exp(logits)) along `axis`."""
    value = np.exp(_shifted(logits, axis))
    value /= value.sum(axis=axis, keepdims=True)
    return value, (lambda g: value * (g - (g * value).sum(axis=axis, keepdims=True)),)


def class_numbers(targets, classes, loss):
    """Targets as indices: integers of any type in 0..classes-1; InputError for others, which names the `loss`.

    Booleans are refused: as an index they would be a mask.
    """
    targets = np.asarray(targets)
    if targets.dtype.kind not in "iu":
        raise InputError(f"{loss}: targets must be integers, not {targets.dtype}; {_instead(targets, classes, loss)}")
    if targets.size and not 0 <= targets.min() <= targets.max() < classes:
        raise InputError(f"{loss}: targets must be in 0..{classes - 1}, found {targets.min()}..{targets.max()}")
    return targets.astype(np.intp, copy=False)  # a narrow type would overflow where classes are counted


def _instead(targets, classes, loss):
    """What to do with targets that are not integers; a 0 or 1 for each class may be one-hot."""
    if targets.ndim < 2 or targets.shape[-1] != classes:
        return "class numbers are integers after .astype(int), and values to predict belong to nn.mse"
    of_several = "answers for each class to nn.logistic_loss" + (", as floats" if targets.dtype.kind == "b" else "")
    return f"one-hot targets become class numbers by .argmax(-1); {of_several}, values to predict to nn.mse"


def answers(targets, shape, loss):
    """Targets as numbers in 0..1, of this shape; InputError for others, which names the `loss`."""
    targets = np.asarray(targets)
    if targets.shape != shape:
        raise InputError(f"{loss}: logits {shape} do not fit targets {targets.shape}")
    if targets.dtype.kind not in "iuf":
        raise InputError(f"{loss}: targets must be numbers in 0..1, not {targets.dtype}")
    if targets.size and not 0 <= targets.min() <= targets.max() <= 1:  # also if one is NaN
        raise InputError(f"{loss}: targets must be in 0..1, found {targets.min()}..{targets.max()}")
    return targets


def one_hot(targets, classes, dtype, loss):
    """Class numbers (...) as (..., classes), 1 at the class and 0 elsewhere; InputError as `class_numbers`."""
    return (class_numbers(targets, classes, loss)[..., np.newaxis] == np.arange(classes)).astype(dtype)


@primitive
def cross_entropy(logits, *, targets, total=1):
    """-sum(log_softmax(logits)[target]) / total for logits (..., classes) and integer targets (...); a scalar.

    `total` is the number of samples in the *global* batch, which the shares of all ranks add up to. InputError for
    targets that have another shape, are not integers or are outside 0..classes-1.
    """
    classes = logits.shape[-1]
    targets = class_numbers(targets, classes, "cross_entropy")
    if logits.shape[:-1] != targets.shape:
        hint = "; one-hot targets become class numbers by .argmax(-1)" if logits.shape == targets.shape else ""
        raise InputError(f"cross_entropy: logits {logits.shape} do not fit targets {targets.shape}{hint}")
    scores = logits.reshape(targets.size, classes)
    labels = targets.reshape(-1)
    rows = np.arange(labels.size)
    shifted = _shifted(scores, 1)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1, keepdims=True)
    value = (np.log(sums).sum() - shifted[rows, labels].sum()) / total

    # g is a scalar: d/d logits = (softmax - one_hot) g / total
    def gradient(g):
        scale = np.asarray(g / total, logits.dtype)
        whole = exponentials * (scale / sums)
        whole[rows, labels] -= scale
        return whole.reshape(logits.shape)

    return np.asarray(value, logits.dtype), (gradient,)


@primitive
def logistic_loss(logits, *, targets, total=1):
    """sum(log(1 + exp(logits)) - targets * logits) / total for targets in 0..1, of the logits' shape; a scalar.

    Each value is a separate yes/no question: log(1 + exp(-z)) where the target is 1, log(1 + exp(z)) where it is 0. So
    the losses of slices of the classes, with the same slices of the targets, add up to the loss of all classes. `total`
    is the number of samples in the *global* batch. InputError for targets that have another shape, are not numbers or
    are outside 0..1.
    """
    targets = answers(targets, logits.shape, "logistic_loss").astype(logits.dtype, copy=False)
    small = np.exp(-np.abs(logits))  # in 0..1: cannot overflow
    value = (np.maximum(logits, 0) - targets * logits + np.log1p(small)).sum() / total

    # g is a scalar: d/d logits = (sigmoid(logits) - targets) g / total
    def gradient(g):
        tail = small / (1 + small)  # sigmoid(-|z|); with 1 - tail for z > 0, small differences keep their digits
        difference = np.where(logits > 0, (1 - targets) - tail, tail - targets)
        return difference * np.asarray(g / total, logits.dtype)

    return np.asarray(value, logits.dtype), (gradient,)
