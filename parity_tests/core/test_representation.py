"""Measures of a representation against scikit-learn, brute force, closed forms and known answers."""

from __future__ import annotations

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.evaluate import representation
from triport.core.evaluate.representation import Features


def blobs(count: int, classes: int = 4, width: int = 12, noise: float = 1.5, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    labels = rng.integers(0, classes, count)
    rows = centres[labels] + noise * rng.standard_normal((count, width))
    return Features(rows.astype(np.float32), labels)


TRAIN, TEST = blobs(400, seed=1), blobs(200, seed=2)


def test_knn_equals_brute_force_for_every_count():
    scores = representation.knn(TRAIN, TEST, 4)
    assert list(scores) == [10, 20, 100, 200]
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (TRAIN.rows, TEST.rows)]
    similar = unit[1] @ unit[0].T
    for count, score in scores.items():
        right = 0
        for row, label in zip(similar, TEST.labels):
            nearest = np.argsort(-row, kind="stable")[:count]
            votes = np.bincount(TRAIN.labels[nearest], np.exp(row[nearest] / 0.07), minlength=4)
            right += votes.argmax() == label
        assert score == right / len(TEST.labels)
    assert list(representation.knn(blobs(15), TEST, 4)) == [10]
    assert list(representation.knn(blobs(5), TEST, 4)) == [5]


def test_logistic_regression_is_scikit_learns():
    sklearn = pytest.importorskip("sklearn.linear_model")
    ours = representation.logistic_regression(TRAIN, 4, penalty=2.0)
    mean, deviation = TRAIN.rows.mean(0), TRAIN.rows.std(0)
    theirs = sklearn.LogisticRegression(C=0.5, max_iter=5000, tol=1e-8)
    theirs.fit((TRAIN.rows - mean) / deviation, TRAIN.labels)
    expected = theirs.predict_proba((TEST.rows - mean) / deviation)
    logits = ours.logits(TEST.rows.astype(np.float64))
    found = np.exp(logits - logits.max(1, keepdims=True))
    assert np.abs(found / found.sum(1, keepdims=True) - expected).max() < 1e-3
    assert ours.accuracy(TEST) == (expected.argmax(1) == TEST.labels).mean()


def test_the_gradient_is_the_slope_of_the_loss():
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((2, 5, 3))
    rows, labels = rng.standard_normal((7, 5)), np.array([0, 1, 2, 0, 1, 2, 0])

    def loss(value):
        logits = np.matmul(rows[None], value)
        return (np.log(np.exp(logits).sum(2)) - logits[:, np.arange(7), labels]).mean(axis=1)

    gradient = representation.cross_entropy_gradient(weight, rows, labels)
    step = 1e-6 * rng.standard_normal(weight.shape)
    slope = (loss(weight + step) - loss(weight - step)) / 2
    assert np.allclose((gradient * step).sum(axis=(1, 2)), slope, rtol=1e-5)


def test_a_linear_probe_learns_what_is_separable_and_chooses_its_rate_without_the_test_rows():
    probe = representation.linear_probe(TRAIN, 4, epochs=10, batch=64)
    assert probe.accuracy(TEST) > representation.knn(TRAIN, TEST, 4)[20] - 0.05 > 0.5
    assert probe.rate in probe.validation and probe.validation[probe.rate] == max(probe.validation.values())
    assert len(probe.validation) == len(representation.RATES)
    table = probe.per_class(TEST, 4)
    assert table.sum() == len(TEST.labels) and np.trace(table) / table.sum() == probe.accuracy(TEST)
    again = representation.linear_probe(TRAIN, 4, epochs=10, batch=64)
    assert np.array_equal(probe.weight, again.weight)


def test_a_scaled_encoder_has_the_same_probe():
    scaled = [Features(part.rows * np.float32(64.0), part.labels) for part in (TRAIN, TEST)]
    plain = representation.linear_probe(TRAIN, 4, epochs=4, batch=64)
    large = representation.linear_probe(scaled[0], 4, epochs=4, batch=64)
    assert np.allclose(plain.logits(TEST.rows), large.logits(scaled[1].rows), atol=1e-4)


@pytest.mark.parametrize("chosen", [{"per_class": 3}, {"share": 0.05}])
def test_few_shot_is_worse_than_all_labels_and_says_how_it_varies(chosen):
    few = representation.few_shot(TRAIN, TEST, 4, **chosen)
    assert len(few.draws) == 5 and 0.25 < few.mean < representation.logistic_regression(TRAIN, 4).accuracy(TEST)
    assert few.deviation == pytest.approx(np.std(few.draws, ddof=1)) and few.deviation > 0


def test_lidar_counts_the_directions_that_tell_images_apart():
    rng = np.random.default_rng(0)
    for rank in (1, 4, 8):
        images = np.zeros((4000, 1, 8))
        images[:, 0, :rank] = rng.standard_normal((4000, rank))
        views = images + 1e-2 * rng.standard_normal((4000, 6, 8))
        assert representation.lidar(views) == pytest.approx(rank, rel=0.05)
    assert representation.lidar(np.ones((3, 2, 4))) == 0.0
    # a direction in which the views of one image differ as much as images do tells nothing
    views = rng.standard_normal((4000, 1, 2)) + np.stack([np.zeros((4000, 6)), 30 * rng.standard_normal((4000, 6))], 2)
    assert representation.lidar(views) < 1.3


def test_what_cannot_be_measured_is_one_line():
    with pytest.raises(UserError, match="not finite"):
        Features(np.full((2, 3), np.nan, np.float32), np.zeros(2, np.int64))
    with pytest.raises(UserError, match="2 rows of features and 3 labels"):
        Features(np.zeros((2, 3), np.float32), np.zeros(3, np.int64))
    with pytest.raises(UserError, match="two or more labelled rows"):
        representation.linear_probe(Features(np.zeros((2, 3), np.float32), np.array([0, 1])), 2)
    with pytest.raises(UserError, match="either"):
        representation.few_shot(TRAIN, TEST, 4)
    with pytest.raises(UserError, match="LiDAR needs"):
        representation.lidar(np.zeros((4, 1, 3)))
