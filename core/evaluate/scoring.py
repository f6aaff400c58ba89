"""What a run is scored by before training and after its epochs: accuracy, kNN, online probe, spread, effective rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from triport.core.backend.learner import Learner, Processes
from triport.core.evaluate import monitors
from triport.core.evaluate.evaluation import PROBE, Images, accuracy, features, gather, knn, write_accuracy
from triport.core.evaluate.online_probe import OnlineProbe
from triport.core.spec import MonitorSpec

DRAWINGS = 50  # in a run without kNN
Watcher = Callable[[int, np.ndarray, np.ndarray], None]  # epoch, held-out features (n, width), labels (n,)


@dataclass
class Scoring:
    """What a run is scored by after an epoch; the loop calls it on every rank."""

    learner: Learner
    processes: Processes
    monitor: MonitorSpec
    epochs: int
    classes: Sequence[str]
    train: Images | None = None  # whole splits in evaluation order, for kNN
    test: Images | None = None
    held_out: Images | None = None  # a few held-out images, for spread and rank
    classifier: bool = False
    folder: Path | None = None  # where evaluation.json goes
    probe: OnlineProbe | None = None
    watcher: Watcher | None = None  # is given the features that a scored epoch has made, on rank 0

    def __call__(self, epoch: int) -> dict[str, float]:
        """Return the scores due after `epoch` epochs; 0 is before training."""
        try:
            return self._accuracy(epoch) if self.classifier else self._features(epoch)
        finally:
            for images in (self.train, self.test, self.held_out):
                if images is not None:
                    images.close()  # until the next time their processes would only take up memory

    def _accuracy(self, epoch: int) -> dict[str, float]:
        every = self.monitor.evaluate_every
        if self.test is None or not epoch or (epoch % every and epoch != self.epochs):
            return {}
        result = accuracy(self.learner.predict, self.test, self.processes, len(self.classes))
        if self.folder is not None and self.processes.rank == 0:
            write_accuracy(self.folder / "evaluation.json", result, self.classes, epoch=epoch)
        return result.scores

    def _features(self, epoch: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        if self.test is not None and self._due(epoch):
            test = features(self.learner.embed, self.test)
            if self.train is not None:
                train = features(self.learner.embed, self.train)
                scores["knn"] = knn(train, test, self.processes, self.monitor, len(self.classes))
            watched, labels = gather(test[0], self.processes), self.processes.gather(test[1])
            if self.probe is not None and len(watched):
                scores["probe"] = float((self.probe.logits(watched).argmax(axis=1) == labels).mean())
        elif self.held_out is not None:
            watched, labels = features(self.learner.embed, self.held_out)
            watched, labels = gather(watched, self.processes), self.processes.gather(labels)
        else:
            return scores
        if len(watched):
            stride = max(1, len(watched) // PROBE)  # alike with and without kNN; a rank needs no more rows
            watched, labels = watched[::stride], labels[::stride]
            scores |= {"spread": monitors.spread(watched), "effective_rank": monitors.effective_rank(watched)}
            if self.watcher is not None and self.processes.rank == 0 and self._drawn(epoch):
                self.watcher(epoch, watched, labels)
        return scores

    def _due(self, epoch: int) -> bool:
        """Whether kNN and probe are scored after an epoch."""
        every = self.monitor.knn_every or self.monitor.evaluate_every
        return epoch % every == 0 or epoch == self.epochs

    def _drawn(self, epoch: int) -> bool:
        """Whether pictures are drawn after an epoch: with kNN, else DRAWINGS times in the run."""
        every = self.monitor.knn_every or math.ceil(self.epochs / DRAWINGS)
        return epoch % every == 0 or epoch == self.epochs
