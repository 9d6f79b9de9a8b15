"""log_softmax, softmax and the cross-entropy of class scores."""

import numpy as np

from parallel_dl.autograd.tape import primitive


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


@primitive
def cross_entropy(logits, *, targets, total=1):
    """-sum(log_softmax(logits)[target]) / total for logits (..., classes) and integer targets (...); a scalar.

    `total` is the number of samples in the *global* batch, which the shares of all ranks add up to.
    """
    classes = logits.shape[-1]
    scores = logits.reshape(targets.size, classes)
    labels = targets.reshape(-1)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"targets must be in 0..{classes - 1}, found {labels.min()}..{labels.max()}")
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
