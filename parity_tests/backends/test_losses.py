"""Losses far from 0: what a framework's own kernels may cut off."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from triport.parity_tests.reference.objectives import cross_entropy, soft_cross_entropy

LOGITS = np.array([[0.0, 100.0, 3.0], [0.0, -5.0, 90.0], [2.0, 1.0, 0.5]])
LABELS = np.array([0, 0, 1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_large_loss_is_reported_whole(probe, dtype):
    """Paddle's CPU kernels of cross entropy and log softmax stop at 64."""
    package = f"triport.backends.{probe.__name__.split('.')[2]}"
    loss = import_module(f"{package}.classify").classification_loss
    tensors = import_module(f"{package}.tensors").Tensors(None, "cpu", dtype)
    logits, labels = tensors.from_host(LOGITS), tensors.from_host(LABELS)
    soft = 0.9 * np.eye(3)[LABELS] + 0.1 / 3
    size = 1e-14 if dtype == "float64" else 1e-6
    assert float(loss(logits, labels, None)) == pytest.approx(cross_entropy(LOGITS, LABELS), rel=size)
    found = loss(logits, labels, tensors.from_host(soft))
    assert float(found) == pytest.approx(soft_cross_entropy(LOGITS, soft), rel=size)
