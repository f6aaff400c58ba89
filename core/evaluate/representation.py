"""Measures of a representation on features that were computed once: kNN, few-shot, linear probes, LiDAR.

Everything here is numpy on (n, width) features and (n,) labels, so that the encoder runs once for all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from triport.core.errors import UserError
from triport.core.evaluate import metrics, monitors
from triport.core.rng import generator

NEIGHBOURS = (10, 20, 100, 200)
TEMPERATURE = 0.07  # of the votes: DINO's protocol (arXiv 2104.14294, appendix F.1)
RATES = tuple(float(rate) for rate in np.geomspace(1e-2, 10.0, 13))  # per 256 rows of mean length 1
DRAWS = 5


@dataclass(frozen=True)
class Features:
    """Features (n, width) float32 and labels (n,) int64 of one split."""

    rows: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.labels):
            raise UserError(f"there are {len(self.rows)} rows of features and {len(self.labels)} labels.")
        if not np.isfinite(self.rows).all():
            raise UserError("the features hold values that are not finite: the weights are damaged or diverged.")


@dataclass(frozen=True)
class Spread:
    """The accuracies of repeated draws: mean and standard deviation (of the draws, divided by n - 1)."""

    mean: float
    deviation: float
    draws: tuple[float, ...]


# ---------------------------------------------------------------- without training
def knn(
    train: Features,
    test: Features,
    classes: int,
    counts: Sequence[int] = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> dict[int, float]:
    """Return kNN accuracy by number of neighbours; neighbours are found once. Counts above len(train) are left out."""
    counts = [count for count in counts if count <= len(train.rows)] or [len(train.rows)]
    similarities, labels = monitors.neighbours(train.rows, train.labels, test.rows, max(counts))
    answers = {
        count: monitors.vote(similarities[:, :count], labels[:, :count], temperature, classes).argmax(axis=1)
        for count in counts
    }
    return {count: float((answer == test.labels).mean()) for count, answer in answers.items()}


def lidar(views: np.ndarray, delta: float = 1e-4) -> float:
    """Return LiDAR, the effective rank of what tells images apart (arXiv 2312.04000, equations 1 to 4).

    views: features (images, views, width) of several augmented views of each image, 2 or more. Between 1 and width.
    """
    if views.ndim != 3 or views.shape[0] < 2 or views.shape[1] < 2:
        raise UserError(f"LiDAR needs at least 2 views of at least 2 images, not an array of shape {views.shape}.")
    rows = np.asarray(views, np.float64)
    centres = rows.mean(axis=1)
    between = np.atleast_2d(np.cov(centres, rowvar=False))
    apart = (rows - centres[:, None]).reshape(-1, rows.shape[2])
    within = apart.T @ apart / (rows.shape[0] * (rows.shape[1] - 1)) + delta * np.eye(rows.shape[2])
    values, vectors = np.linalg.eigh(within)
    whiten = (vectors / np.sqrt(values)) @ vectors.T
    spectrum = np.clip(np.linalg.eigvalsh(whiten @ between @ whiten), 0.0, None)
    if not spectrum.sum() > 0:
        return 0.0
    share = spectrum[spectrum > spectrum.max() * 1e-12] / spectrum.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


# ---------------------------------------------------------------- linear classifiers
@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of features; `rate` is the learning rate, or the penalty of a logistic regression."""

    weight: np.ndarray  # (classes, width) float32
    bias: np.ndarray  # (classes,)
    rate: float
    validation: dict[float, float]  # accuracy on the part of the training rows that was put aside, by rate

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of features (n, width)."""
        return rows @ self.weight.T + self.bias

    def accuracy(self, test: Features) -> float:
        """Share of rows whose largest logit is their label's."""
        return float(metrics.top_k(self.logits(test.rows), test.labels, (1,))[0] / max(len(test.labels), 1))

    def per_class(self, test: Features, classes: int) -> np.ndarray:
        """Confusion table int64 (classes, classes), rows are the truth."""
        return metrics.confusion(self.logits(test.rows), test.labels, classes)


def linear_probe(
    train: Features,
    classes: int,
    *,
    rates: Sequence[float] = RATES,
    epochs: int = 20,
    batch: int = 256,
    validation_share: float = 0.1,
    seed: int = 0,
) -> LinearProbe:
    """Train one classifier per learning rate at once, by SGD with momentum 0.9 and a cosine schedule (as DINOv2 does).

    The rate is chosen on a `validation_share` of the training rows that no classifier sees, never on the test rows.
    Rows are scaled by the training rows' mean norm alone, so that a rate means the same for any encoder.
    """
    learned, aside = divide(train, validation_share, seed)
    scale = np.float32(1.0 / max(float(np.linalg.norm(learned.rows, axis=1).mean()), 1e-12))
    width, many = train.rows.shape[1], len(rates)
    weight = np.zeros((many, width + 1, classes), np.float32)
    velocity = np.zeros_like(weight)
    steps = epochs * max(1, len(learned.rows) // batch)
    per_row = np.asarray(rates, np.float32)[:, None, None] * np.float32(batch / 256)
    step = 0
    for epoch in range(epochs):
        order = generator(seed, "linear probe", epoch).permutation(len(learned.rows))
        for start in range(0, max(len(order) - batch + 1, 1), batch):
            index = order[start : start + batch]
            rows = with_bias(learned.rows[index] * scale)
            gradient = cross_entropy_gradient(weight, rows, learned.labels[index])
            velocity = np.float32(0.9) * velocity + gradient
            weight -= per_row * np.float32(0.5 * (1 + np.cos(np.pi * step / steps))) * velocity
            step += 1
    scores = {
        float(rate): LinearProbe(w[:-1].T * scale, w[-1], float(rate), {}).accuracy(aside)
        for rate, w in zip(rates, weight)
    }
    best = max(scores, key=lambda rate: scores[rate])
    chosen = weight[list(map(float, rates)).index(best)]
    return LinearProbe(np.ascontiguousarray(chosen[:-1].T * scale), chosen[-1], best, scores)


def logistic_regression(train: Features, classes: int, penalty: float = 1.0, iterations: int = 1000) -> LinearProbe:
    """Minimise mean cross entropy plus penalty / (2 n) |W|^2 by L-BFGS (scipy); the bias is not penalised.

    Rows are standardised by the training rows' mean and deviation, which are folded into the weights.
    """
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise UserError("logistic regression needs scipy: pip install scipy.") from None
    rows = np.asarray(train.rows, np.float64)
    mean, deviation = rows.mean(axis=0), rows.std(axis=0)
    deviation = np.where(deviation > 0, deviation, 1.0)
    scaled = with_bias((rows - mean) / deviation)
    shape = (scaled.shape[1], classes)
    truth = np.eye(classes)[train.labels]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight = flat.reshape(shape)
        logits = scaled @ weight
        top = logits.max(axis=1, keepdims=True)
        logarithm = top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        loss = float((logarithm[:, 0] - (logits * truth).sum(axis=1)).mean())
        gradient = scaled.T @ (np.exp(logits - logarithm) - truth) / len(scaled)
        loss += penalty / (2 * len(scaled)) * float((weight[:-1] ** 2).sum())
        gradient[:-1] += penalty / len(scaled) * weight[:-1]
        return loss, gradient.reshape(-1)

    found = minimize(
        objective, np.zeros(shape).reshape(-1), jac=True, method="L-BFGS-B", options={"maxiter": iterations}
    )
    weight = found.x.reshape(shape)
    folded = (weight[:-1] / deviation[:, None]).T
    return LinearProbe(folded, weight[-1] - folded @ mean, penalty, {})


def few_shot(
    train: Features,
    test: Features,
    classes: int,
    *,
    per_class: int | None = None,
    share: float | None = None,
    seed: int = 0,
) -> Spread:
    """Accuracy of logistic regressions on few labelled rows: `per_class` of each class, or a `share` of every class.

    DRAWS drawings, each keyed by its number; a class always brings at least one row.
    """
    if (per_class is None) == (share is None):
        raise UserError("few-shot takes either a number of rows per class or a share of the rows.")
    accuracies = []
    for draw in range(DRAWS):
        rng = generator(seed, "few shot", draw)
        chosen: list[int] = []
        for label in range(classes):
            own = np.flatnonzero(train.labels == label)
            count = per_class if per_class is not None else round(len(own) * float(share or 0))
            chosen += rng.permutation(own)[: max(1, count)].tolist() if len(own) else []
        part = Features(train.rows[chosen], train.labels[chosen])
        accuracies.append(logistic_regression(part, classes).accuracy(test))
    values = np.asarray(accuracies)
    return Spread(float(values.mean()), float(values.std(ddof=1)), tuple(accuracies))


def divide(train: Features, share: float, seed: int) -> tuple[Features, Features]:
    """Put a `share` of each class aside, at least one row of every class that has two or more."""
    aside = np.zeros(len(train.rows), bool)
    rng = generator(seed, "put aside")
    for label in np.unique(train.labels):
        own = np.flatnonzero(train.labels == label)
        if len(own) > 1:
            aside[rng.permutation(own)[: max(1, round(share * len(own)))]] = True
    if not aside.any():
        raise UserError("a linear probe needs two or more labelled rows of some class.")
    return Features(train.rows[~aside], train.labels[~aside]), Features(train.rows[aside], train.labels[aside])


def with_bias(rows: np.ndarray) -> np.ndarray:
    """Rows (n, width) with a column of ones behind them."""
    return np.concatenate([rows, np.ones((len(rows), 1), rows.dtype)], axis=1)


def cross_entropy_gradient(weight: np.ndarray, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Gradient (k, width, classes) of the mean cross entropy of k classifiers (k, width, classes) on the same rows."""
    logits = np.matmul(rows[None], weight)
    logits -= logits.max(axis=2, keepdims=True)
    share = np.exp(logits)
    share /= share.sum(axis=2, keepdims=True)
    share[:, np.arange(len(labels)), labels] -= 1
    return np.matmul(rows.T[None], share) / np.float32(len(labels))
