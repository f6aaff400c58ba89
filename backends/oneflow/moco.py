"""MoCo v3: two encoders, a predictor, a symmetric contrastive loss (moco/builder.py, arXiv 2104.02057)."""

from __future__ import annotations

from triport.backends.oneflow.layers import BatchNorm, Gather, mlp_head
from triport.backends.oneflow.resnet import ResidualNetwork
from triport.backends.oneflow.runtime import F, Tensor, flow, nn
from triport.backends.oneflow.tensors import follow, wide
from triport.backends.oneflow.vit import VisionTransformer
from triport.core.model.inventory import feature_width
from triport.core.spec import Encoder, MoCo, ViT


class MoCoV3(nn.Module):
    """base_encoder and momentum_encoder, each with its projector, and the predictor."""

    def __init__(self, encoder: Encoder, objective: MoCo) -> None:
        super().__init__()
        self.temperature = objective.temperature
        self.base_encoder = projected(encoder, objective)
        self.momentum_encoder = projected(encoder, objective)
        self.momentum_encoder.requires_grad_(False)
        dim, hidden = objective.dim, objective.hidden
        self.predictor = mlp_head([dim, hidden, dim], last_norm=isinstance(encoder, ViT))
        # a backbone without batch norm gives each image the same features whatever stands beside it in the batch
        self.joint = isinstance(encoder, ViT) and encoder.stem == "patch"
        self.of_vit = isinstance(encoder, ViT)
        self.paired = False

    def pair_views(self) -> None:
        """Let both views go through all layers at once, so that a batch norm of several processes sends one message."""
        self.paired = True
        for module in self.modules():
            if isinstance(module, BatchNorm):
                module.views = 2

    def forward(self, view1: Tensor, view2: Tensor, gather: Gather, rank: int = 0) -> dict[str, Tensor]:
        """Both views (n, channels, height, width) -> loss, predictions q1, q2 and keys k1, k2, (n, dim) each.

        Also features (n, width), the base encoder's of the first view, which no gradient passes. Every batch norm sees
        each view as a batch of its own. Negatives are the keys of all processes.
        """
        z1, z2, features = self._project(self.base_encoder, view1, view2)
        if self.paired:
            q1, q2 = self.predictor(flow.cat([z1, z2])).chunk(2)
        else:
            q1, q2 = self.predictor(z1), self.predictor(z2)
        with flow.no_grad():
            k1, k2, _ = self._project(self.momentum_encoder, view1, view2)
        loss = self.contrast(q1, k2, gather, rank) + self.contrast(q2, k1, gather, rank)
        return {"loss": loss, "q1": q1, "q2": q2, "k1": k1, "k2": k2, "features": features.detach()}

    def _project(self, encoder: nn.Module, view1: Tensor, view2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The projections of both views, and the first one's features."""
        # by what was built: in a graph a module of another class stands around the encoder
        head = encoder.head if self.of_vit else encoder.fc
        if self.paired:
            both = encoder.features(flow.cat([view1, view2]))
            first, (z1, z2) = both.chunk(2)[0], head(both).chunk(2)
            return z1, z2, first
        if self.joint:
            first, second = encoder.features(flow.cat([view1, view2])).chunk(2)
        else:
            first, second = encoder.features(view1), encoder.features(view2)
        return head(first), head(second), first

    def contrast(self, q: Tensor, k: Tensor, gather: Gather, rank: int) -> Tensor:
        """2 T times the cross entropy of each query against all keys, its own key being the right one."""
        q, k = F.normalize(wide(q), dim=1), F.normalize(wide(k), dim=1)
        logits = q @ gather(k).T / self.temperature
        labels = flow.arange(len(q), device=q.device) + len(q) * rank
        return F.cross_entropy(logits, labels) * (2 * self.temperature)

    def update_momentum(self, momentum: float) -> None:
        """Move every parameter (not buffer) of the momentum encoder towards the base encoder, in place.

        Comes before the keys are computed, so it uses the base weights of the last optimiser step.
        """
        follow(list(self.momentum_encoder.parameters()), list(self.base_encoder.parameters()), momentum)


def projected(encoder: Encoder, objective: MoCo) -> nn.Module:
    """An encoder with its projector: three layers on a ViT, two on a ResNet."""
    width, hidden, dim = feature_width(encoder), objective.hidden, objective.dim
    if isinstance(encoder, ViT):
        return VisionTransformer(encoder, head=mlp_head([width, hidden, hidden, dim], last_norm=True))
    return ResidualNetwork(encoder, head=mlp_head([width, hidden, dim], last_norm=True))
