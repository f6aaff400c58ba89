"""Models and answers as mmpretrain's and timm's users ask for them: get_model, inference_model, features of a batch."""

from __future__ import annotations

from pathlib import Path
from types import MethodType
from typing import Any, TypedDict

import numpy as np

from triport import api
from triport.core.errors import UserError
from triport.core.spec import MoCo, ModelSpec, zoo


class Answer(TypedDict):
    """What a classifier says of an image."""

    pred_class: str
    pred_label: int
    pred_score: float
    pred_scores: np.ndarray  # (classes,), adding up to 1


def get_model(
    name: str | ModelSpec, pretrained: str | Path | None = None, *, backend: str | None = None, seed: int = 0
) -> Any:
    """Return a model, as `create_model` does, with values from the file `pretrained` (nothing is downloaded).

    Beside what the framework's module has, it has `extract_feat(images)`: features (n, width).
    """
    if isinstance(pretrained, bool):
        raise UserError(
            "pretrained is the file of the weights: nothing is downloaded. `triport models NAME` says where."
        )
    return api.create_model(name, backend=backend, weights=pretrained, seed=seed)


def inference_model(
    model: str | Path,
    image: api.ImageLike,
    *,
    pretrained: str | Path | None = None,
    backend: str | None = None,
    device: str = "auto",
) -> Answer:
    """Return what a classifier says of one image.

    model: a run folder, a checkpoint; or a model's or recipe's name, with the file `pretrained` of its weights.
    """
    if not isinstance(model, (str, Path)):
        raise UserError("inference_model takes a run folder, a checkpoint or a model's name, not a model in memory.")
    if pretrained is None and not Path(model).exists():
        api.find_spec(str(model))  # a wrong name says so
        raise UserError(f"the model '{model}' needs weights: pretrained=FILE, or name a run folder or checkpoint.")
    named = None if pretrained is None else str(model)
    if named in zoo.names():
        named = zoo.find(named).recipes[0]
    subject = api.find(model if pretrained is None else pretrained, named, embedding=False)
    if not subject.has_head:
        raise UserError(f"{model} holds an encoder without a trained head: use embed, or train a head first.")
    logits = api.ask(subject, "predict", [image], backend, device, 1)[0].astype(np.float64)
    scores = np.exp(logits - logits.max())
    scores /= scores.sum()
    label = int(scores.argmax())
    classes = subject.classes or ()
    name = classes[label] if label < len(classes) else str(label)
    return {"pred_class": name, "pred_label": label, "pred_score": float(scores[label]), "pred_scores": scores}


def with_features(model: Any, spec: ModelSpec) -> Any:
    """Give a module of any framework `extract_feat`, and a pretraining model `features` and `forward_head` too.

    A pretraining model called with one batch of images (n, channels, height, width) answers with features (n, width);
    with more than that it does what it is trained with.
    """
    model.extract_feat = MethodType(_features, model)
    model.forward_head = MethodType(_head, model)
    if isinstance(spec.objective, MoCo):
        model.features = model.extract_feat
        model.forward = MethodType(_moco, model)
    return model


def _features(model: Any, images: Any) -> Any:
    """Features (n, width) of images: of the base encoder where there are two."""
    encoder: Any = getattr(model, "base_encoder", model)
    return encoder.features(images)


def _head(model: Any, features: Any) -> Any:
    """What the head makes of features: logits, a projection, or the features where there is none."""
    encoder = getattr(model, "base_encoder", model)
    head = getattr(encoder, "head", None) or getattr(encoder, "fc", None)
    return features if head is None else head(features)


def _moco(model: Any, images: Any, *others: Any, **named: Any) -> Any:
    if others or named:
        return type(model).forward(model, images, *others, **named)
    return model.extract_feat(images)
