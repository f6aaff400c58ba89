"""The grammar of layout tables, and the sections that spell names as the originals do.

A table has a line per group of arrays: canonical name, name in the file, role. `=` repeats the canonical name and
`-` stands for "nothing". Slots: `{i}` is an index, `{a|b}` one of these words, `{wb}` weight or bias, `{stat}` the
running statistics and counter of a batch norm, `{bn}` both. Slots answer each other in order, words by their place.
`a & b & c` in the file's column are rows of one canonical array, in that order.

Roles: `linear` (out, in) matrix of a fully connected layer; `qkv`, `qkv-bias` the fused projection; `ones`, `zeros`
(with `?` where files may lack them) a constant that the canonical model does not have; `count` an integer 0 likewise.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

BN = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
CHOICES = {"wb": BN[:2], "bn": BN, "stat": BN[2:]}
PADDLE = {**CHOICES, "bn": (*BN[:2], "_mean", "_variance", BN[4]), "stat": ("_mean", "_variance", BN[4])}
SLOT = re.compile(r"\{([^{}]*)\}")


@dataclass(frozen=True)
class Rule:
    """One line of a table with its words spelled out; only index slots, written #, are left."""

    canonical: str | None
    foreign: tuple[str, ...]
    role: str = ""


Table = tuple[Rule, ...]


def table(text: str, choices: Mapping[str, tuple[str, ...]] = CHOICES) -> Table:
    """Parse a table; `words` spells the slots of the file's column (the canonical column always has PyTorch's)."""
    return tuple(rule for line in text.strip().splitlines() if line.strip() for rule in _rules(line, choices))


def under(canonical: str, foreign: str, rules: Iterable[Rule]) -> Table:
    """The same rules below two prefixes."""
    return tuple(
        replace(
            rule,
            canonical=None if rule.canonical is None else canonical + rule.canonical,
            foreign=tuple(foreign + name for name in rule.foreign),
        )
        for rule in rules
    )


def _rules(line: str, choices: Mapping[str, tuple[str, ...]]) -> Iterator[Rule]:
    left, *rest = line.split()
    role = rest.pop() if rest and rest[-1] in ROLES else ""
    right = "".join(rest) or "="
    names = [left if name == "=" else name for name in right.split("&")]
    spelled = [_spell(name, choices) for name in names]
    canonical: list[str | None] = [None] * len(spelled[0]) if left == "-" else list(_spell(left, CHOICES))
    if any(len(s) != len(canonical) for s in spelled):
        raise ValueError(f"the two columns do not answer each other: {line!r}")
    for own_name, *foreign in zip(canonical, *spelled, strict=False):
        # a role that speaks of matrices says nothing of the bias beside them
        matrix = role in ("linear", "qkv")
        own = "qkv-bias" if role == "qkv" and foreign[0].endswith("bias") else role
        yield Rule(own_name, tuple(foreign), "" if matrix and own == "linear" and foreign[0].endswith("bias") else own)


ROLES = ("linear", "qkv", "ones", "zeros", "ones?", "zeros?", "count")


def _spell(pattern: str, choices: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Every name that the word slots of a pattern allow, in order; index slots become #."""
    pieces: list[tuple[str, ...]] = []
    for k, piece in enumerate(SLOT.split(pattern)):
        if k % 2 == 0:
            pieces.append((piece,))
        elif piece == "i":
            pieces.append(("#",))
        else:
            pieces.append(choices[piece] if piece in choices else tuple(piece.split("|")))
    return ["".join(choice) for choice in itertools.product(*pieces)]


# ---------------------------------------------------------------- sections under the originals' names
BLOCK = """
norm1.{wb}
attn.qkv.{wb}   = qkv
attn.proj.{wb}  = linear
norm2.{wb}
mlp.fc1.{wb}    = linear
mlp.fc2.{wb}    = linear
"""

TOKENS = """
cls_token
pos_embed
patch_embed.proj.{wb}
"""

CONV_STEM = """
patch_embed.proj.{0|3|6|9}.weight
patch_embed.proj.{1|4|7|10}.{bn}
patch_embed.proj.12.{wb}
"""

LAST_NORM = """
norm.{wb}
fc_norm.{wb}
"""

RESNET = """
conv1.weight
bn1.{bn}
layer{1|2|3|4}.{i}.conv{1|2|3}.weight
layer{1|2|3|4}.{i}.bn{1|2|3}.{bn}
layer{1|2|3|4}.{i}.downsample.0.weight
layer{1|2|3|4}.{i}.downsample.1.{bn}
"""

VIT_PROJECTOR = """
head.{0|3|6}.weight  = linear
head.{1|4}.{bn}
head.7.{stat}
"""

RESNET_PROJECTOR = """
fc.{0|3}.weight  = linear
fc.1.{bn}
fc.4.{stat}
"""

PREDICTOR = """
predictor.{0|3}.weight  = linear
predictor.1.{bn}
predictor.4.{stat}
"""

DECODER = """
mask_token
decoder_pos_embed
decoder_embed.{wb}  = linear
decoder_norm.{wb}
decoder_pred.{wb}   = linear
"""

VIT_HEAD = """
head.{wb}     = linear
head.0.{stat}
head.1.{wb}   = linear
"""

RESNET_HEAD = """
fc.{wb}       = linear
fc.0.{stat}
fc.1.{wb}     = linear
"""


def vit(choices: Mapping[str, tuple[str, ...]] = CHOICES) -> Table:
    """A ViT's own arrays under the originals' names."""
    return (
        *table(TOKENS + CONV_STEM, choices),
        *under("blocks.#.", "blocks.#.", table(BLOCK, choices)),
        *table(LAST_NORM, choices),
    )


def decoder(choices: Mapping[str, tuple[str, ...]] = CHOICES) -> Table:
    """MAE's decoder under the originals' names."""
    return (*table(DECODER, choices), *under("decoder_blocks.#.", "decoder_blocks.#.", table(BLOCK, choices)))


def moco(encoder: Table, projector: Table, predictor: Table) -> Table:
    """The three parts of MoCo v3 under the originals' names."""
    both = encoder + projector
    base, momentum = (under(prefix, prefix, both) for prefix in ("base_encoder.", "momentum_encoder."))
    return base + momentum + predictor
