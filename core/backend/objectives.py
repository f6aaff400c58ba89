"""What each objective asks of a model: the inputs of a training step, and the outputs in training and evaluation.

Models are the frameworks' own; they have the same methods under the same names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from triport.core.backend.learner import Processes
from triport.core.backend.tensors import Arrays, Tensor, Tensors
from triport.core.data.batches import Batch
from triport.core.errors import UserError
from triport.core.model import masking
from triport.core.model.inventory import head_name
from triport.core.spec import MAE, Classifier, MoCo, ModelSpec

Loss = Callable[[Tensor, Tensor, Any], Tensor]  # logits, labels, soft targets or None -> cross entropy
Inputs = Mapping[str, Tensor]


def inputs(spec: ModelSpec, batch: Batch) -> dict[str, np.ndarray]:
    """A batch as the arrays that `outputs` takes, by name."""
    objective = spec.objective
    if isinstance(objective, MoCo):
        return {"view1": batch.images[0], "view2": batch.images[1]}
    if isinstance(objective, MAE):
        assert batch.mask_noise is not None
        return {"images": batch.images[0], **masking.mask(batch.mask_noise, objective.mask_ratio)._asdict()}
    check_labels(batch.labels, objective.classes)
    given = {"images": batch.images[0], "labels": batch.labels, "targets": batch.targets, "draws": batch.drop_path}
    return {name: array for name, array in given.items() if array is not None}


def check_labels(labels: np.ndarray, classes: int) -> None:
    """Raise UserError for labels (n,) out of range; frameworks crash on them, or give a number all the same."""
    if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
        raise UserError(f"labels from {labels.min()} to {labels.max()} do not fit the model's {classes} classes.")


def outputs(
    model: Any, spec: ModelSpec, given: Inputs, processes: Processes, loss: Loss, tensors: Tensors
) -> dict[str, Tensor]:
    """A training step's loss, 0-d, and what else the objective gives; `given` as `inputs` names it."""
    if isinstance(spec.objective, MoCo):
        return model(given["view1"], given["view2"], processes.gather_rows, processes.rank)  # type: ignore[attr-defined]
    if isinstance(spec.objective, MAE):
        return model.reconstruct(**given)
    if spec.objective.frozen_encoder:
        with tensors.no_grad():
            features = model.features(given["images"])
        logits = getattr(model, head_name(spec.encoder))(features)
    else:
        logits = model(given["images"], given.get("draws"))
    return {"loss": loss(logits, given["labels"], given.get("targets")), "logits": logits}


def evaluation_outputs(model: Any, spec: ModelSpec, given: Arrays, loss: Loss, tensors: Tensors) -> dict[str, Tensor]:
    """In evaluation mode, of images (n, C, H, W): MoCo's projection and prediction; MAE's loss, mask and prediction
    under mask_noise; a classifier's features, logits and, with labels, loss."""
    images = tensors.from_host(given["images"])
    if isinstance(spec.objective, MoCo):
        projection = model.base_encoder(images)
        return {"projection": projection, "prediction": model.predictor(projection)}
    if isinstance(spec.objective, MAE):
        mask = masking.mask(given["mask_noise"], spec.objective.mask_ratio)._asdict()
        found = model.reconstruct(images, **{name: tensors.from_host(array) for name, array in mask.items()})
        return {name: found[name] for name in ("loss", "prediction", "mask")}
    features = model.features(images)
    found = {"features": features, "logits": getattr(model, head_name(spec.encoder))(features)}
    if "labels" in given:
        found["loss"] = loss(found["logits"], tensors.from_host(given["labels"]), None)
    return found


def trains_in_evaluation_mode(spec: ModelSpec) -> bool:
    """Whether a frozen encoder stays in evaluation mode while its head is trained."""
    objective = spec.objective
    return isinstance(objective, Classifier) and objective.frozen_encoder and objective.frozen_mode == "eval"
