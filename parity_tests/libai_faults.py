"""What tests ask of LiBai's own trainer and evaluator: faults of theirs, mended and as they are."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import libai.data.build as loaders
import libai.optim
import libai.scheduler
import numpy as np
from libai.config import LazyCall
from libai.data.structures import DistTensorData, Instance
from libai.engine import DefaultTrainer
from libai.evaluation import ClsEvaluator
from numpy.typing import NDArray
from omegaconf import DictConfig

from backends.oneflow import libai_mesh
from backends.oneflow.libai_repairs import VisionTransformer
from backends.oneflow.quiet import flow

STEPS, SAVED, IMAGES, BATCH = 6, 3, 40, 4


def counts(most: int) -> dict[str, list[int]]:
    """How many of how many right answers are counted wrongly, for up to `most` images in a batch."""
    wrong: dict[str, list[int]] = {"mended": [], "as it is": []}
    for n in range(1, most + 1):
        for right in range(n + 1):
            logits = np.eye(2, dtype=np.float32)[(np.arange(n) >= right).astype(int)]
            given = {"labels": flow.zeros(n, dtype=flow.int64)}, {"prediction_scores": flow.from_numpy(logits)}
            for name, process in (("mended", ClsEvaluator.process), ("as it is", ClsEvaluator.process.__wrapped__)):
                evaluator = ClsEvaluator(topk=(1,))
                process(evaluator, *given)
                if round(evaluator.evaluate()["Acc@1"] * n / 100) != right:
                    wrong[name].append(n)
    return wrong


class Squares:
    """Random images of two classes, in the form that LiBai's data loaders take."""

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Instance:
        """One image with its label."""
        draw = np.random.Generator(np.random.Philox(index)).random((1, 8, 8), dtype=np.float32)
        label = flow.tensor(index % 2, dtype=flow.int64)
        image = DistTensorData(flow.from_numpy(draw + np.float32(index % 2)), placement_idx=0)
        return Instance(images=image, labels=DistTensorData(label, placement_idx=-1))


class AsItIs(DefaultTrainer):
    """LiBai's trainer without the repair of its position."""

    build_train_loader: Any = classmethod(DefaultTrainer.build_train_loader.__func__.__wrapped__)


def resumed(folder: str) -> dict[str, NDArray]:
    """Weights of a whole run of LiBai's DefaultTrainer, and of one resumed from its middle, mended and as it is."""
    libai_mesh.set_up(libai_mesh.Degrees(), 2)
    whole = Path(folder) / "whole"
    answer = {"whole": _trained(DefaultTrainer, whole, resume=False)}
    for name, kind in (("mended", DefaultTrainer), ("as it is", AsItIs)):
        copy = Path(folder) / name
        shutil.copytree(whole / f"model_{SAVED - 1:07d}", copy / f"model_{SAVED - 1:07d}")
        (copy / "last_checkpoint").write_text(f"model_{SAVED - 1:07d}")
        answer[name] = _trained(kind, copy, resume=True)
    return answer


def _trained(kind: type[DefaultTrainer], folder: Path, resume: bool) -> NDArray:
    """All weights that a run leaves, as one row. The model begins with the same values each time."""
    flow.manual_seed(3)
    folder.mkdir(exist_ok=True)
    trainer = kind(_config(folder, resume))
    trainer.train()
    return np.concatenate([p.numpy().ravel() for p in trainer.model.parameters()])


def _config(folder: Path, resume: bool) -> DictConfig:
    """A LiBai user's config of a tiny ViT."""
    vit: dict[str, Any] = {"img_size": 8, "patch_size": 4, "in_chans": 1, "embed_dim": 8, "depth": 2, "num_heads": 2}
    scheduler = LazyCall(libai.scheduler.WarmupCosineLR)(warmup_factor=0.1)
    return DictConfig(
        {
            "model": LazyCall(VisionTransformer)(**vit, num_classes=2),
            "optim": LazyCall(flow.optim.SGD)(
                params=LazyCall(libai.optim.get_default_optimizer_params)(), lr=0.1, momentum=0.9
            ),
            "dataloader": {
                "train": LazyCall(loaders.build_image_train_loader)(dataset=[LazyCall(Squares)()], num_workers=0)
            },
            "graph": {"enabled": False},
            "train": {
                "output_dir": str(folder),
                "resume": resume,
                "load_weight": "",
                "train_iter": STEPS,
                "warmup_ratio": 0.5,
                "train_micro_batch_size": BATCH,
                "test_micro_batch_size": BATCH,
                "global_batch_size": BATCH,
                "num_accumulation_steps": 1,
                "seed": 5,
                "log_period": 100,
                "checkpointer": {"period": SAVED, "max_to_keep": 9},
                "evaluation": {"enabled": False},
                "amp": {"enabled": False},
                "scheduler": scheduler,
            },
        },
        flags={"allow_objects": True},
    )
