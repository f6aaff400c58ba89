"""The loss of a mesh's model, and a compiled graph of it: loss and gradients come out, the update stays outside.

OneFlow's graphs compute gradients only for an optimiser, and know only their own. So they get one at learning rate 0
over a number that nothing depends on.
"""

from __future__ import annotations

from collections.abc import Sequence

from triport.backends.oneflow.classify import classification_loss
from triport.backends.oneflow.libai.model import Vit, whole
from triport.backends.oneflow.libai.repairs import dist
from triport.backends.oneflow.numerics import HALVES, half
from triport.backends.oneflow.runtime import Tensor, flow, nn


class Loss(nn.Module):
    """A model with its loss."""

    def __init__(self, model: Vit, precision: str = "float32") -> None:
        super().__init__()
        self.model, self.precision = model, precision
        where = {"placement": dist.get_layer_placement(-1), "sbp": whole()}
        self.anchor = nn.Parameter(flow.zeros(1, **where))  # float32: its optimizer knows no other

    def forward(self, images: Tensor, answers: Tensor, draws: Tensor | None = None) -> dict[str, Tensor]:
        """Images, labels (n,) or soft targets (n, classes), numbers of stochastic depth -> the loss, 0-d, by name."""
        soft = answers if answers.ndim == 2 else None
        with half(self.precision):
            logits = self.model(images, draws)
        loss = classification_loss(logits, answers, soft)
        return {"loss": loss + self.anchor.sum().to(loss.dtype)}


class Step(nn.Graph):
    """What `Loss` takes -> the loss, and the gradient of every trained parameter in their order."""

    def __init__(self, loss: Loss, trained: Sequence[str]) -> None:
        super().__init__()
        self.loss, self.trained = loss, [f"model.{name}" for name in trained]
        if loss.precision in HALVES:
            self.config.enable_amp(True, dtype=HALVES[loss.precision])
        self.add_optimizer(flow.optim.SGD([loss.anchor], lr=0.0))
        self._place_stages()

    def build(self, *given: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Traced once for each shape of what is given."""
        loss = self.loss(*given)["loss"]
        loss.backward()
        parameters = dict(self.loss.named_parameters())
        values = [parameters[name].to(flow.Tensor) for name in self.trained]
        return loss, [value.grad.to_global(sbp=value.sbp) for value in values]  # which may still be partial sums

    def _place_stages(self) -> None:
        """Tell the graph which stage of the pipeline each part is in."""
        model, mesh = self.loss.model, dist.get_dist_util()
        parts = [(model.patch_embed, 0), (model.norm, -1), (model.head, -1)]
        for block, index in [*parts, *((block, i) for i, block in enumerate(model.blocks))]:
            block.to(nn.graph.GraphModule).set_stage(mesh.get_layer_stage_id(index), dist.get_layer_placement(index))
