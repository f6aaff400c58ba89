"""A linear classifier that learns beside an encoder, from features that training steps give anyway."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from triport.core.errors import UserError

RATE = 4.0  # peak learning rate, stable for rows of length 1; it falls to 0 over the run as a cosine
MOMENTUM = 0.9
FOLLOWING = 0.05  # share of a batch in the running mean and variance, once there were 1 / FOLLOWING batches
EPS = 1e-6
STATE = ("weight", "bias", "weight_velocity", "bias_velocity", "mean", "variance", "batches")


class OnlineProbe:
    """Softmax regression by SGD with momentum on features scaled by their running mean and variance.

    It has nothing but copies of the features, so that no gradient can reach the encoder. It draws nothing and starts at
    0: the same features give the same bits. All processes learn alike from the rows of all.
    """

    def __init__(self, width: int, classes: int, precision: str = "float32") -> None:
        self.kind = kind = np.dtype(np.float64 if precision == "float64" else np.float32)
        self.weight, self.bias = np.zeros((classes, width), kind), np.zeros(classes, kind)
        self.weight_velocity, self.bias_velocity = np.zeros_like(self.weight), np.zeros_like(self.bias)
        self.mean, self.variance = np.zeros(width, kind), np.ones(width, kind)
        self.batches = np.zeros((), np.int64)  # that it has learned from

    def learn(self, features: np.ndarray, labels: np.ndarray, progress: float) -> dict[str, float]:
        """Learn from features (n, width) and labels (n,), -1 where unknown; `progress` is the run's, from 0 to 1.

        Returns loss and accuracy on these rows before they were learned from; {} where no row has a label.
        """
        known = labels >= 0
        if not known.any():
            return {}
        rows, labels = np.asarray(features[known], self.kind), labels[known]
        self._follow(rows)
        scaled = self._scaled(rows)
        share = scaled @ self.weight.T + self.bias
        right = float((share.argmax(axis=1) == labels).mean())
        share -= share.max(axis=1, keepdims=True)
        np.exp(share, out=share)
        share /= share.sum(axis=1, keepdims=True)
        places = np.arange(len(labels))
        loss = float(-np.log(np.maximum(share[places, labels], self.kind.type(1e-30))).mean())
        share[places, labels] -= 1
        share /= self.kind.type(len(labels))
        rate = self.kind.type(RATE * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0))))
        for value, velocity, gradient in (
            (self.weight, self.weight_velocity, share.T @ scaled),
            (self.bias, self.bias_velocity, share.sum(axis=0)),
        ):
            velocity *= self.kind.type(MOMENTUM)
            velocity += gradient
            value -= rate * velocity
        return {"probe_loss": loss, "probe_accuracy": right}

    def logits(self, features: np.ndarray) -> np.ndarray:
        """Logits (n, classes) of features (n, width)."""
        return np.asarray(self._scaled(np.asarray(features, self.kind)) @ self.weight.T + self.bias)

    def _follow(self, rows: np.ndarray) -> None:
        """Move the running mean and variance towards a batch's; the first batches count alike."""
        self.batches = self.batches + 1
        share = self.kind.type(max(FOLLOWING, 1 / int(self.batches)))
        self.mean += share * (rows.mean(axis=0) - self.mean)
        self.variance += share * (((rows - self.mean) ** 2).mean(axis=0) - self.variance)

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        """Rows whose mean square length is about 1, so that a learning rate means the same at any width."""
        return np.asarray(
            (rows - self.mean) / np.sqrt(self.variance * self.kind.type(rows.shape[1]) + self.kind.type(EPS))
        )

    # ---------------------------------------------------------------- state
    def arrays(self) -> dict[str, np.ndarray]:
        """The whole state, for a checkpoint."""
        return {name: np.array(getattr(self, name)) for name in STATE}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state that `arrays` gave; UserError where it is of other features or classes."""
        for name in STATE:
            before = getattr(self, name)
            if name not in arrays or arrays[name].shape != before.shape:
                raise UserError(
                    "the checkpoint's probe is of other features or classes: resume with monitor.probe=false."
                )
            setattr(self, name, np.array(arrays[name], before.dtype))
