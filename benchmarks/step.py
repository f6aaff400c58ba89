"""A training step of MoCo v3 ViT-S and MAE ViT-B at 224 pixels in PyTorch, beside a plain textbook implementation.

python benchmarks/step.py [--model moco|mae] [--precision float32|bfloat16] [--batch N] [--rounds N] [--compile]

Both train the same weights on the same random images, in turn, in one process; medians and the ratio of each pair
are printed, with model FLOPs as a share of the matrix-product peak measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from triport.backends.torch import build, distributed, layers, learner
from triport.core.data.loader import Batch
from triport.core.model import masking
from triport.core.model.flops import encoder_flops
from triport.core.model.groups import groups
from triport.core.model.init import initial_values
from triport.core.model.inventory import grid, inventory
from triport.core.model.schedule import Values
from triport.core.spec import MAE, MoCo, Recipe, ViT
from triport.core.spec.recipe import load

NAMES = {"moco": "moco_v3/vit_small_300ep", "mae": "mae/vit_base_800ep"}


# ---------------------------------------------------------------- the textbook
class PlainAttention(layers.Attention):
    """Softmax of the whole score matrix, every token's row."""

    def forward(self, x: Tensor, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same."""
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (width // self.heads) ** -0.5
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(n, tokens, width))


class PlainBlock(layers.Block):
    """Every token goes through, also where only one is used later."""

    def forward(self, x: Tensor, draws: Tensor | None = None, token_only: bool = False) -> Tensor:
        """(n, tokens, width) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PlainPatches(layers.PatchEmbedding):
    """The convolution as a convolution."""

    def forward(self, images: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, patches, width)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Textbook:
    """The same model and update, one view and one tensor at a time."""

    def __init__(self, recipe: Recipe, arrays: dict[str, np.ndarray], precision: str) -> None:
        self.recipe, self.precision = recipe, precision
        self.model = build.build(recipe.model, arrays)
        plain = {layers.Attention: PlainAttention, layers.Block: PlainBlock, layers.PatchEmbedding: PlainPatches}
        for module in self.model.modules():
            module.__class__ = plain.get(type(module), type(module))  # type: ignore[assignment]
        rules, named = groups(inventory(recipe.model), recipe.optimizer), dict(self.model.named_parameters())
        spec = recipe.optimizer
        self.optimizer = torch.optim.AdamW(
            [{"params": [named[n]], "weight_decay": rule.weight_decay} for n, rule in rules.items()],
            betas=spec.betas, eps=spec.eps, foreach=False, fused=False,
        )  # fmt: skip

    def step(self, batch: Batch, values: Values) -> float:
        """One training step; returns the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = values.lr
        with torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16"):
            views = [torch.from_numpy(view) for view in batch.images]
            loss = self._moco(views, values) if isinstance(self.model, build.MoCoV3) else self._mae(views[0], batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss)

    def _moco(self, views: list[Tensor], values: Values) -> Tensor:
        model = self.model
        q1, q2 = (model.predictor(model.base_encoder(view)) for view in views)  # type: ignore[operator]
        with torch.no_grad():
            pairs = zip(model.momentum_encoder.parameters(), model.base_encoder.parameters())  # type: ignore[union-attr]
            for slow, fast in pairs:
                slow.data = slow.data * values.momentum + fast.data * (1 - values.momentum)
            k1, k2 = (model.momentum_encoder(view) for view in views)  # type: ignore[operator]
        return model.contrast(q1, k2, lambda k: k, 0) + model.contrast(q2, k1, lambda k: k, 0)  # type: ignore[operator]

    def _mae(self, images: Tensor, batch: Batch) -> Tensor:
        model, objective = self.model, self.recipe.model.objective
        assert batch.mask_noise is not None and isinstance(objective, MAE)
        visible, restore, mask = (torch.from_numpy(a) for a in masking.mask(batch.mask_noise, objective.mask_ratio))
        x = model.patch_embed(images) + model.pos_embed[:, 1:]  # type: ignore[operator,index]
        x = torch.gather(x, 1, visible.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        x = torch.cat([(model.cls_token + model.pos_embed[:, :1]).expand(len(x), -1, -1), x], 1)  # type: ignore[index]
        for block in model.blocks:  # type: ignore[union-attr]
            x = block(x)
        prediction = model.decode(model.norm(x), restore)  # type: ignore[operator]
        error = (prediction.float() - model.target(images)).square().mean(-1)  # type: ignore[operator]
        return (error * mask).sum() / mask.sum()


# ---------------------------------------------------------------- measuring
def random_batch(recipe: Recipe, n: int) -> Batch:
    """White-noise images and what the objective needs beside them."""
    rng, encoder = np.random.default_rng(0), recipe.model.encoder
    count = 2 if isinstance(recipe.model.objective, MoCo) else 1
    shape = (n, encoder.channels, *encoder.image)
    views = tuple(rng.standard_normal(shape, dtype=np.float32) for _ in range(count))
    noise = None
    if isinstance(encoder, ViT) and count == 1:
        noise = masking.noise(0, 0, range(n), int(np.prod(grid(encoder))))
    labels = np.zeros(n, np.int64)
    return Batch(images=views, labels=labels, targets=None, indices=labels, mask_noise=noise, drop_path=None)


def step_flops(recipe: Recipe) -> float:
    """Floating-point operations that a step's model needs per image: 2 per multiply-add, backward twice forward."""
    encoder, objective = recipe.model.encoder, recipe.model.objective
    whole = encoder_flops(encoder)
    if isinstance(objective, MoCo):  # two views: forward and backward of one encoder, forward of the other
        return 2 * whole * 2 * 4
    assert isinstance(encoder, ViT) and isinstance(objective, MAE)
    patches = int(np.prod(grid(encoder)))

    def blocks(tokens: int, width: int, depth: int) -> float:
        return depth * (12 * tokens * width**2 + 2 * tokens**2 * width)

    seen = masking.visible_patches(patches, objective.mask_ratio)
    pixels, width = encoder.channels * encoder.patch[0] * encoder.patch[1], objective.decoder_width
    total = blocks(seen + 1, encoder.width, encoder.depth) + blocks(patches + 1, width, objective.decoder_depth)
    total += seen * pixels * encoder.width + (seen + 1) * encoder.width * width + patches * width * pixels
    return total * 2 * 3


def peak(precision: str, rounds: int = 5) -> float:
    """This machine's best measured matrix-product rate, floating-point operations per second."""
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (3152, 768, 3072), (3152, 384, 1536)):
        a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, columns, dtype=dtype)
        for _ in range(rounds):
            best = max(best, 2 * rows * inner * columns / timed(lambda a=a, b=b: a @ b))  # type: ignore[misc]
    return best


def timed(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def compare(model: str, precision: str, n: int, rounds: int, compile: bool) -> None:
    """Time both in turn and print one line."""
    recipe = load(NAMES[model])
    arrays, batch, values = initial_values(recipe.model, 0), random_batch(recipe, n), Values(1e-4, 0.99)
    ours = learner.make(recipe, arrays, processes=distributed.start("cpu"), precision=precision, compile=compile)
    plain = Textbook(recipe, arrays, precision)
    one, two = ours.step([batch], values).loss, plain.step(batch, values)  # warm-up, and the same loss
    if abs(one - two) > (2e-2 if precision == "bfloat16" else 1e-4) * abs(two):
        raise SystemExit(f"the two losses differ: {one} and {two}")
    best, mine, theirs = peak(precision), [], []
    for _ in range(rounds):
        mine.append(timed(lambda: ours.step([batch], values)))
        theirs.append(timed(lambda: plain.step(batch, values)))
    ratio = statistics.median(t / m for m, t in zip(mine, theirs))
    fast, slow = statistics.median(mine), statistics.median(theirs)
    share = step_flops(recipe) * n / fast / best
    print(
        f"{model} {precision}, batch {n}: {n / fast:.2f} images/s, textbook {n / slow:.2f}, ratio {ratio:.2f}; "
        f"{best / 1e9:.0f} GFLOP/s peak, model FLOPs {share:.0%} of it; peak memory {ours.memory() / 2**30:.2f} GiB",
        flush=True,
    )


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=NAMES, action="append")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), action="append")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    for model in options.model or NAMES:
        for precision in options.precision or ("float32", "bfloat16"):
            compare(model, precision, options.batch, options.rounds, options.compile)


if __name__ == "__main__":
    main()
