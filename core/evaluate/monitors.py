"""What is watched during a run: kNN accuracy, feature spread, effective rank, and values that are not finite."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from triport.core.model.spread import normalise, spread

__all__ = ["effective_rank", "first_bad", "merge", "neighbours", "normalise", "spread", "vote"]

CHUNK = 2048  # rows compared at once; with what is made on the way, some 100 MB


def neighbours(train: np.ndarray, labels: np.ndarray, test: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Find the `count` rows of `train` most like each row of `test` by cosine, exactly, in chunks.

    train (n, d), labels (n,), test (m, d) -> similarities float32 (m, k) falling, their labels int64 (m, k), with
    k = min(count, n). Among equal similarities the earlier training row comes first.
    """
    train, test = normalise(train), normalise(test)
    count = min(count, len(train))
    found = np.empty((len(test), count), np.float32)
    whose = np.empty((len(test), count), np.int64)
    for start in range(0, len(test), CHUNK):
        rows = test[start : start + CHUNK]
        best = np.empty((len(rows), 0), np.float32)
        names = np.empty((len(rows), 0), np.int64)
        for begin in range(0, len(train), CHUNK):
            fresh = rows @ train[begin : begin + CHUNK].T
            own = np.broadcast_to(labels[begin : begin + CHUNK], fresh.shape)
            best, names = merge(np.hstack([best, fresh]), np.hstack([names, own]), count)
        found[start : start + CHUNK], whose[start : start + CHUNK] = best, names
    return found, whose


def merge(similarities: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the `count` largest columns of each row, falling, with their labels; ties keep the column order."""
    if similarities.shape[1] > 4 * count:
        similarities, labels = _shortlist(similarities, labels, count)
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(labels, order, axis=1)


def _shortlist(similarities: np.ndarray, labels: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows to `count` columns in column order; a full sort of long rows would cost far more."""
    place = similarities.shape[1] - count
    bound = np.partition(similarities, place, axis=1)[:, place, None]
    chosen = similarities >= bound
    for row in np.flatnonzero(chosen.sum(axis=1) > count):
        # Of the columns that equal the bound, only as many of the first ones as `count` allows.
        level = np.flatnonzero(similarities[row] == bound[row])
        chosen[row, level[count - int((similarities[row] > bound[row]).sum()) :]] = False
    shape = (len(similarities), count)
    return similarities[chosen].reshape(shape), labels[chosen].reshape(shape)


def vote(similarities: np.ndarray, labels: np.ndarray, temperature: float, classes: int) -> np.ndarray:
    """Return float64 (m, classes): each neighbour votes for its label with weight exp(similarity / temperature)."""
    # Subtracting the largest changes no winner and keeps small temperatures from overflowing.
    weights = np.exp((similarities - similarities.max(axis=1, keepdims=True)).astype(np.float64) / temperature)
    votes = np.zeros((len(labels), classes))
    np.add.at(votes, (np.arange(len(labels))[:, None], labels), weights)
    return votes


def effective_rank(features: np.ndarray) -> float:
    """Return exp of the entropy of the singular values' shares (RankMe, arXiv 2210.02885): between 1 and min(n, d)."""
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        return float("nan")
    values = np.linalg.svd(features, compute_uv=False)
    share = values[values > values.max(initial=0.0) * 1e-12]
    if not len(share):
        return 0.0
    share = share / share.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def first_bad(arrays: Mapping[str, np.ndarray]) -> str | None:
    """Return the first name whose array holds a NaN or an infinity, or None."""
    return next(
        (name for name, array in arrays.items() if array.dtype.kind == "f" and not np.isfinite(array).all()), None
    )
