"""kNN, spread, effective rank and accuracy against naive formulas, scikit-learn and cases with a known answer."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from sklearn.neighbors import KNeighborsClassifier

from triport.core.backend.learner import Alone
from triport.core.data.batches import Batch
from triport.core.evaluate import evaluation, metrics, monitors
from triport.core.spec import MonitorSpec
from triport.parity_tests.fixtures.ranks import run_ranks


def clouds(
    seed: int, count: int, classes: int = 5, width: int = 12, noise: float = 2.0
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, width))
    labels = rng.integers(classes, size=count)
    return (centres[labels] + noise * rng.standard_normal((count, width))).astype(np.float32), labels


def naive_knn(train, train_labels, test, test_labels, count, temperature, classes):
    """One pair at a time, in float64."""
    right = 0
    for row, label in zip(test.astype(float), test_labels, strict=True):
        found = []
        for other, name in zip(train.astype(float), train_labels, strict=True):
            found.append((float(row @ other) / math.sqrt((row @ row) * (other @ other)), name))
        votes = [0.0] * classes
        for similarity, name in sorted(found, key=lambda pair: -pair[0])[:count]:
            votes[name] += math.exp(similarity / temperature)
        right += max(range(classes), key=votes.__getitem__) == label
    return right / len(test)


# ---------------------------------------------------------------- kNN
def knn(train, test, neighbours: int, temperature: float, classes: int) -> float:
    """kNN of one process."""
    monitor = MonitorSpec(knn_neighbours=neighbours, knn_temperature=temperature)
    return evaluation.knn(train, test, Alone(), monitor, classes)


@pytest.mark.parametrize("count", [1, 5, 20, 150])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_is_the_naive_formula(monkeypatch, count, temperature):
    monkeypatch.setattr(monitors, "CHUNK", 17)
    train, test = clouds(1, 150), clouds(2, 60)
    wanted = naive_knn(*train, *test, count, temperature, 5)
    assert 0.3 < wanted < 1
    assert knn(train, test, count, temperature, 5) == wanted


@pytest.mark.parametrize("count", [1, 7, 20])
def test_knn_is_scikit_learns(count):
    train, test = clouds(3, 700), clouds(4, 300)
    judge = KNeighborsClassifier(count, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    wanted = judge.fit(*train).score(*test)
    assert knn(train, test, count, 0.07, 5) == pytest.approx(wanted, abs=1e-9)


def test_chunks_change_nothing(monkeypatch):
    train, test = clouds(5, 501), clouds(6, 203)
    found, whose = monitors.neighbours(*train, test[0], 20)
    for chunk in (1, 20, 100, 1000):
        monkeypatch.setattr(monitors, "CHUNK", chunk)
        again, names = monitors.neighbours(*train, test[0], 20)
        np.testing.assert_allclose(again, found, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(names, whose)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=30, max_size=30), min_size=1, max_size=4), st.integers(1, 8))
def test_ties_go_to_the_earlier_row(rows, count):
    similarities = np.array(rows, np.float32)
    columns = np.broadcast_to(np.arange(30), similarities.shape)
    _, found = monitors.merge(similarities, columns, count)
    for row, picked in zip(rows, found, strict=True):
        assert picked.tolist() == sorted(range(30), key=lambda i: (-row[i], i))[:count]


def test_knn_does_not_feel_lengths_and_survives_zeros_and_small_temperatures():
    train, test = clouds(7, 200), clouds(8, 100)
    wanted = knn(train, test, 20, 0.07, 5)
    scale = np.random.default_rng(0).uniform(0.01, 100, (200, 1)).astype(np.float32)
    assert knn((train[0] * scale, train[1]), test, 20, 0.07, 5) == wanted
    assert math.isfinite(knn((np.zeros_like(train[0]), train[1]), test, 20, 0.07, 5))
    nearest = knn(train, test, 1, 0.07, 5)
    assert knn(train, test, 20, 1e-4, 5) == nearest


@pytest.mark.parametrize("world", [2, 3, 8])
def test_knn_over_ranks_is_knn_of_one(world):
    train, test = clouds(9, 100), clouds(10, 53)
    monitor = MonitorSpec(knn_neighbours=20, knn_temperature=0.07)
    wanted = evaluation.knn(train, test, Alone(), monitor, 5)

    def one(processes):
        # with 8 ranks a part has 13 training rows, fewer than the neighbours asked for
        parts = [tuple(np.array_split(half, world)[processes.rank] for half in pair) for pair in (train, test)]
        return evaluation.knn(parts[0], parts[1], processes, monitor, 5)

    assert run_ranks(world, one) == [wanted] * world


def test_a_rank_without_images_takes_part():
    train, test = clouds(9, 100), clouds(10, 1)

    def one(processes):
        empty = np.zeros((0, 0), np.float32), np.zeros(0, np.int64)
        return evaluation.knn(
            train if processes.rank else empty, empty if processes.rank else test, processes, MonitorSpec(), 5
        )

    assert run_ranks(2, one) == [knn(train, test, 20, 0.07, 5)] * 2


# ---------------------------------------------------------------- features
def test_spread_is_1_for_directions_of_all_kinds_and_0_for_one():
    rng = np.random.default_rng(0)
    assert monitors.spread(rng.standard_normal((20_000, 64))) == pytest.approx(1, abs=0.01)
    one = rng.standard_normal((1, 64))
    assert monitors.spread(one * rng.uniform(1, 9, (100, 1))) == pytest.approx(0, abs=1e-6)
    halfway = one * 10 + rng.standard_normal((1000, 64))
    assert 0 < monitors.spread(halfway) < 0.5


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_effective_rank_counts_equal_directions(rank):
    square = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))[0]
    assert monitors.effective_rank(square[:, :rank] @ square[:rank]) == pytest.approx(rank, rel=1e-6)


def test_effective_rank_of_known_singular_values():
    values = np.array([4.0, 2.0, 1.0, 1.0])
    share = values / 8
    wanted = math.exp(-sum(share * np.log(share)))
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, 4)))[0] for n in (50, 20))
    assert monitors.effective_rank(left * values @ right.T) == pytest.approx(wanted, rel=1e-6)
    assert monitors.effective_rank(np.zeros((5, 4))) == 0
    assert math.isnan(monitors.effective_rank(np.full((5, 4), np.nan)))


def test_the_first_array_that_is_not_finite_is_named():
    arrays = {
        "a": np.ones(3),
        "n": np.array(5),
        "big": np.full(4, 3e38, np.float32),
        "b": np.array([1, np.inf]),
        "c": np.array([np.nan]),
    }
    assert monitors.first_bad(arrays) == "b"
    assert monitors.first_bad({name: arrays[name] for name in ("a", "n", "big")}) is None
    assert monitors.first_bad({"sum": np.array([1e308, 1e308])}) is None
    assert monitors.first_bad({"cancels": np.array([np.inf, -np.inf])}) == "cancels"


# ---------------------------------------------------------------- accuracy
@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(6, 12), st.integers(1, 40))
def test_top_k_and_confusion_are_scikit_learns(seed, classes, count):
    rng = np.random.default_rng(seed)
    logits, labels = rng.standard_normal((count, classes)), rng.integers(classes, size=count)
    for k, found in zip((1, 3, 5), metrics.top_k(logits, labels, (1, 3, 5)), strict=True):
        assert found == top_k_accuracy_score(labels, logits, k=k, normalize=False, labels=range(classes))
    counts = metrics.Counts(classes)
    for part in (slice(None, count // 2), slice(count // 2, None)):  # batches add up
        counts.add(logits[part], labels[part])
    expected = confusion_matrix(labels, logits.argmax(axis=1), labels=range(classes))
    np.testing.assert_array_equal(counts.table, expected)
    np.testing.assert_array_equal(counts.seen, expected.sum(axis=1))
    np.testing.assert_array_equal(counts.hits, np.diagonal(expected))
    seen = np.unique(labels)
    recalls = [(logits.argmax(axis=1)[labels == c] == c).mean() for c in seen]
    assert metrics.mean_per_class(counts.seen, counts.hits) == pytest.approx(np.mean(recalls))


def test_a_constant_answer_scores_what_it_deserves():
    labels = np.array([0, 1, 2, 3, 9])
    assert metrics.top_k(np.zeros((5, 10)), labels, (1, 5, 10)).tolist() == [1, 4, 5]
    assert metrics.top_k(np.full((5, 10), np.nan), labels, (1, 5)).tolist() == [0, 0]
    assert metrics.top_k(np.zeros((0, 10)), labels[:0]).tolist() == [0, 0]
    counts = metrics.Counts(3)
    counts.add(np.zeros((0, 3)), labels[:0])
    assert counts.table is not None and counts.table.tolist() == [[0] * 3] * 3
    assert metrics.mean_per_class(counts.seen, counts.hits) == 0


def test_many_classes_are_counted_without_a_table():
    counts = metrics.Counts(21_841)
    logits = np.zeros((3, 21_841), np.float32)
    logits[:, 20_000] = 1
    counts.add(logits, np.array([20_000, 20_000, 5]))
    assert counts.table is None and metrics.Counts(1000).table is not None
    assert counts.seen[[5, 20_000]].tolist() == [1, 2] and counts.hits.sum() == 2
    assert metrics.mean_per_class(counts.seen, counts.hits) == 0.5


# ---------------------------------------------------------------- broken images
def test_a_batch_whose_images_are_all_broken_is_passed_over():
    def asked(images: np.ndarray) -> np.ndarray:
        assert len(images), "a framework cannot reshape nothing"
        return images.reshape(len(images), -1)[:, :5]

    class Images:
        """Three batches; the second has no image left."""

        def epoch(self, number: int) -> list[list[Batch]]:
            sizes, made = (2, 0, 3), np.random.default_rng(number).random
            return [[Batch((made((n, 1, 4, 4)),), np.arange(n), None, np.arange(n), None, None)] for n in sizes]

    rows, labels = evaluation.features(asked, Images())  # type: ignore[arg-type]
    assert rows.shape == (5, 5) and labels.tolist() == [0, 1, 0, 1, 2]
    assert evaluation.accuracy(asked, Images(), Alone(), 5).images == 5  # type: ignore[arg-type]
