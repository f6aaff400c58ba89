"""Classifiers: an encoder with a linear head, for probes, fine-tuning and evaluation; and their loss."""

from __future__ import annotations

from triport.backends.paddle.kernels import Linear, cross_entropy, log_softmax
from triport.backends.paddle.layers import BatchNorm
from triport.backends.paddle.resnet import ResidualNetwork
from triport.backends.paddle.runtime import Tensor, nn
from triport.backends.paddle.tensors import wide
from triport.backends.paddle.vit import VisionTransformer
from triport.core.model.inventory import feature_width
from triport.core.spec import Classifier, Encoder, ViT


def classifier(encoder: Encoder, objective: Classifier) -> nn.Layer:
    """An encoder whose head gives logits (n, classes); with `head_norm` a batch norm without affine in front of it."""
    width = feature_width(encoder)
    head: nn.Layer = Linear(width, objective.classes)
    if objective.head_norm:  # main_linprobe.py
        head = nn.Sequential(BatchNorm(width, affine=False, eps=1e-6), head)
    if isinstance(encoder, ViT):
        return VisionTransformer(encoder, head=head, pooling=objective.pooling)
    return ResidualNetwork(encoder, head=head)


def classification_loss(logits: Tensor, labels: Tensor, targets: Tensor | None) -> Tensor:
    """Cross entropy with labels (n,), or with soft targets (n, classes) where Mixup, CutMix or smoothing made them."""
    logits = wide(logits)
    if targets is None:
        return cross_entropy(logits, labels)
    return -(targets * log_softmax(logits)).sum(axis=-1).mean()
