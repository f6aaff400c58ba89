"""A real, tiny learner in numpy, so that the whole loop is tested without any framework.

The encoder cuts the image into patches and gives tanh(patch_embed(patch)), averaged. On it stand a linear classifier,
a masked autoencoder with a linear decoder, or MoCo's two views with a linear projector and a momentum encoder; the
optimiser is SGD with momentum. Every other array of the model is carried along untouched.

    python -m parity_tests.numpy_learner pretrain RECIPE ...     (or linear, finetune, evaluate)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from core import run
from core.inventory import inventory
from core.learner import Alone, Processes, StepResult
from core.loader import Batch
from core.masking import mask
from core.schedule import Values
from core.spec import MAE, Classifier, MoCo, Recipe, ViT

Arrays = dict[str, np.ndarray]


class Learner:
    """See core.learner.Learner. `faults` are optimiser steps, counted from 0, whose gradients turn into NaN."""

    def __init__(self, recipe: Recipe, arrays: Arrays, processes: Processes, faults: Sequence[int] = ()) -> None:
        assert isinstance(recipe.model.encoder, ViT)
        self.recipe, self.processes, self.faults = recipe, processes, set(faults)
        self.encoder, self.objective = recipe.model.encoder, recipe.model.objective
        self.names = [p.name for p in inventory(recipe.model) if p.trainable]
        self.load(arrays, None)

    # ------------------------------------------------------------ the interface
    def step(self, batches: Sequence[Batch], values: Values) -> StepResult:
        time.sleep(float(os.environ.get("NUMPY_LEARNER_SLEEP", 0)))
        if isinstance(self.objective, MoCo):
            self._follow(values.momentum)
        loss, grads = np.float32(0), dict[str, Any]()
        for batch in batches:
            one, own = self._loss(batch)
            loss += one / np.float32(len(batches))
            for name, grad in own.items():
                if name in self.names:
                    grads[name] = grads.get(name, np.float32(0)) + grad / np.float32(len(batches))
        if self.processes.world > 1:
            loss = self.processes.gather(np.array([loss])).mean(dtype=np.float32)
            grads = {name: self.processes.gather(g[None]).mean(axis=0) for name, g in grads.items()}
        if self.steps in self.faults:
            self.faults.discard(self.steps)
            grads[min(grads)] = grads[min(grads)] * np.nan
        for name, grad in grads.items():
            if not np.isfinite(grad).all():
                return StepResult(float(loss), float("nan"), 0.0, bad=name)
        for name, grad in grads.items():
            self.mu[name] = np.float32(self.recipe.optimizer.momentum) * self.mu.get(name, np.float32(0)) + grad
            self.values[name] = self.values[name] - np.float32(values.lr) * self.mu[name]
        self.steps += 1
        norms = {name: float(np.linalg.norm(grad)) for name, grad in grads.items()}
        first = next((norm for name, norm in norms.items() if "patch_embed" in name), 0.0)
        return StepResult(float(loss), float(np.linalg.norm(list(norms.values()))), first, extras={"extra": 1.0})

    def embed(self, images: np.ndarray) -> np.ndarray:
        return self._hidden(images, "base_encoder." if isinstance(self.objective, MoCo) else "")[1].mean(axis=1)

    def predict(self, images: np.ndarray) -> np.ndarray:
        return self.embed(images) @ self.values["head.weight"].T + self.values["head.bias"]

    def arrays(self) -> Arrays:
        return dict(self.values)

    def optimizer_arrays(self) -> Arrays:
        return {"step": np.array(self.steps), **{f"mu/{name}": mu for name, mu in self.mu.items()}}

    def load(self, arrays: Arrays, optimizer_arrays: Arrays | None) -> None:
        missing = {p.name for p in inventory(self.recipe.model)} ^ set(arrays)
        assert not missing, missing
        self.values = {name: np.array(array) for name, array in arrays.items()}
        state = optimizer_arrays or {"step": np.array(0)}
        self.steps = int(state["step"])
        self.mu = {name[3:]: np.array(mu) for name, mu in state.items() if name.startswith("mu/")}

    def memory(self) -> int:
        return sum(array.nbytes for array in self.values.values())

    # ------------------------------------------------------------ the model
    def _patches(self, images: np.ndarray) -> np.ndarray:
        n, c, h, w = images.shape
        rows, columns = self.encoder.patch
        cut = images.reshape(n, c, h // rows, rows, w // columns, columns).transpose(0, 2, 4, 1, 3, 5)
        return cut.reshape(n, -1, c * rows * columns)

    def _hidden(self, images: np.ndarray, prefix: str) -> tuple[np.ndarray, np.ndarray]:
        """Patches (n, L, pixels) and their hidden values (n, L, width)."""
        patches, weight = self._patches(images), self.values[f"{prefix}patch_embed.proj.weight"]
        bias = self.values[f"{prefix}patch_embed.proj.bias"]
        return patches, np.tanh(patches @ weight.reshape(len(weight), -1).T + bias)

    def _encoder_gradient(self, patches: np.ndarray, hidden: np.ndarray, grad: np.ndarray, prefix: str) -> Arrays:
        grad = (grad * (1 - hidden * hidden)).reshape(-1, hidden.shape[-1])
        name = f"{prefix}patch_embed.proj"
        weight = (grad.T @ patches.reshape(-1, patches.shape[-1])).reshape(self.values[f"{name}.weight"].shape)
        return {f"{name}.weight": weight, f"{name}.bias": grad.sum(axis=0)}

    def _loss(self, batch: Batch) -> tuple[np.float32, Arrays]:
        if isinstance(self.objective, Classifier):
            return self._classify(batch, self.objective.classes)
        return self._autoencode(batch, self.objective) if isinstance(self.objective, MAE) else self._contrast(batch)

    def _classify(self, batch: Batch, classes: int) -> tuple[np.float32, Arrays]:
        patches, hidden = self._hidden(batch.images[0], "")
        feature = hidden.mean(axis=1)
        share = _softmax(feature @ self.values["head.weight"].T + self.values["head.bias"])
        target = np.eye(classes, dtype=np.float32)[batch.labels] if batch.targets is None else batch.targets
        loss = -(target * np.log(share + np.float32(1e-12))).sum(axis=1).mean()
        grad = (share - target) / np.float32(len(share))
        inner = np.repeat((grad @ self.values["head.weight"])[:, None], hidden.shape[1], axis=1) / hidden.shape[1]
        own = {"head.weight": grad.T @ feature, "head.bias": grad.sum(axis=0)}
        return loss, {**own, **self._encoder_gradient(patches, hidden, inner.astype(np.float32), "")}

    def _autoencode(self, batch: Batch, objective: MAE) -> tuple[np.float32, Arrays]:
        assert batch.mask_noise is not None
        patches, hidden = self._hidden(batch.images[0], "")
        gone = mask(batch.mask_noise, objective.mask_ratio).mask[..., None]
        kept = 1 - gone
        context = (hidden * kept).sum(axis=1, keepdims=True) / kept.sum(axis=1, keepdims=True)
        weight, bias = self.values["decoder_pred.weight"], self.values["decoder_pred.bias"]
        error = (context @ weight.T + bias - patches) * gone
        scale = np.float32(2 / (gone.sum() * patches.shape[-1]))
        loss = (error * error).sum() * scale / 2
        grad = (error * scale).sum(axis=1)
        inner = (grad @ weight)[:, None] * kept / kept.sum(axis=1, keepdims=True)
        own = {"decoder_pred.weight": grad.T @ context[:, 0], "decoder_pred.bias": grad.sum(axis=0)}
        return np.float32(loss), {**own, **self._encoder_gradient(patches, hidden, inner.astype(np.float32), "")}

    def _contrast(self, batch: Batch) -> tuple[np.float32, Arrays]:
        assert isinstance(self.objective, MoCo)
        temperature, total, grads = np.float32(self.objective.temperature), np.float32(0), dict[str, Any]()
        head, twin = self.values["base_encoder.head.0.weight"], self.values["momentum_encoder.head.0.weight"]
        for one, other in ((0, 1), (1, 0)):
            patches, hidden = self._hidden(batch.images[one], "base_encoder.")
            feature = hidden.mean(axis=1)
            key, _ = _unit(self._hidden(batch.images[other], "momentum_encoder.")[1].mean(axis=1) @ twin.T)
            keys = self.processes.gather(key)
            query, length = _unit(feature @ head.T)
            share = _softmax(query @ keys.T / temperature)
            place = np.arange(len(query)) + len(query) * self.processes.rank
            total += -np.log(share[np.arange(len(query)), place]).mean() * 2 * temperature
            share[np.arange(len(query)), place] -= 1
            raw = share @ keys * np.float32(2 / len(query))
            raw = (raw - query * (raw * query).sum(axis=1, keepdims=True)) / length
            inner = np.repeat((raw @ head)[:, None], hidden.shape[1], axis=1) / np.float32(hidden.shape[1])
            own = self._encoder_gradient(patches, hidden, inner, "base_encoder.")
            own["base_encoder.head.0.weight"] = raw.T @ feature
            grads = {name: grads.get(name, np.float32(0)) + grad for name, grad in own.items()}
        return np.float32(total), grads

    def _follow(self, momentum: float) -> None:
        m = np.float32(momentum)
        for name in self.values:
            if name.startswith("momentum_encoder.") and "running" not in name and "tracked" not in name:
                base = self.values[name.replace("momentum_encoder.", "base_encoder.")]
                self.values[name] = m * self.values[name] + (np.float32(1) - m) * base


def _softmax(logits: np.ndarray) -> np.ndarray:
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    return share / share.sum(axis=1, keepdims=True)


def _unit(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    length = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return rows / length, length


def start(device: str) -> Alone:
    return Alone()


def make(recipe: Recipe, arrays: Arrays, *, processes: Processes, **rest: Any) -> Learner:
    faults = [int(step) for step in os.environ.get("NUMPY_LEARNER_FAULTS", "").split()]
    return Learner(recipe, arrays, processes, faults)


BACKEND = run.Backend("numpy", start, make)

if __name__ == "__main__":
    task = {"pretrain": run.pretrain, "linear": run.linear, "finetune": run.finetune, "evaluate": run.evaluate}
    sys.exit(task[sys.argv[1]](sys.argv[2:], backend=BACKEND))
