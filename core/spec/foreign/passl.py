"""PASSL's YAML files as recipes: MoCo v3 pretraining and probing, fine-tuning of DeiT; of the older format MAE, too."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign import passl_v1
from triport.core.spec.foreign.passl_training import optimizer, options, schedule
from triport.core.spec.foreign.passl_views import augmentation, mixing
from triport.core.spec.foreign.reading import Reading, made
from triport.core.spec.foreign.settings import Settings, flat, literal
from triport.core.spec.foreign.shared_views import held_out
from triport.core.spec.spec import (
    MAE,
    AugmentSpec,
    Classifier,
    DataSpec,
    MixSpec,
    MoCo,
    ModelSpec,
    MonitorSpec,
    Objective,
    Recipe,
    ViT,
)

DEIT = {"tiny": (192, 3), "small": (384, 6), "base": (768, 12)}  # width, heads
ELSEWHERE = {  # what becomes of settings that have no counterpart
    "Global.task_type": "the recipe says what is trained",
    "Global.train_loop": "the recipe says what is trained",
    "Global.validate_loop": "the recipe says what is trained",
    "Global.finetune": "this is fine-tuning",
    "Global.eval_unit": "evaluation comes after epochs",
    "Global.max_num_latest_checkpoint": "monitor.keep=N says how many checkpoints are kept",
    "Global.print_batch_step": "every step is shown and recorded",
    "Global.use_visualdl": "TensorBoard events are always written",
    "Global.pretrained_model": "pretraining begins with random weights unless --weights names a file",
    "DistributedStrategy": "the launcher says how many processes share the batch",
    "DataLoader.Train.dataset.root": "--data goes before it",
    "DataLoader.Eval.dataset.root": "--data goes before it",
    "DataLoader.Train.dataset.image_root": "--data goes before it",
    "DataLoader.Eval.dataset.image_root": "--data goes before it",
    "DataLoader.Train.dataset.cls_label_path": "the folders in train are the classes",
    "DataLoader.Eval.dataset.cls_label_path": "the folders in val are the classes",
    "DataLoader.Train.sampler.drop_last": "the last images of an epoch that fill no batch are left out",
    "DataLoader.Train.loader": "batches always come through shared memory",
    "DataLoader.Eval.sampler": "every image is evaluated once, in batches as large as training's",
    "DataLoader.Eval.loader": "as for training (--workers N)",
    "Metric": "top-1, top-5 and the mean over classes are measured",
    "Export": "triport convert writes other forms",
    "LRScheduler.last_epoch": "a resumed run knows where it was",
    "": "not known here, without effect",
}


def read(path: Path, overrides: Sequence[str] = (), processes: int = 1, given: Sequence[str] = ()) -> Reading:
    """Read a YAML file of PASSL for so many processes, each with the file's batch; `given` are words of the run."""
    s = settings(path, overrides)
    s.own = [word for word in given if "=" in word and word[0] != "-" and "/" not in word.partition("=")[0]]
    return reading(s, processes, given)


def reading(s: Settings, processes: int = 1, given: Sequence[str] = ()) -> Reading:
    """Read settings for so many processes."""
    name = str(s.left.get("Model.name"))
    parts = model(s)  # refuses other models before anything else
    more = options(s, name, given)
    whole = recipe(s, processes, parts)
    beside = {"level": s.take("FP16.level", "O0"), "first_scale": s.take("FP16.GradScaler.init_loss_scaling", None)}
    if beside["level"] not in ("O0", "O1", "O2"):
        raise UserError(f"{s.path}: FP16.level {beside['level']} is not known here: O1 and O2 are, and O0 for float32")
    s.forget("FP16.GradScaler", "the scale of the loss doubles after 2000 good steps and halves at an overflow")
    s.forget_all(ELSEWHERE)
    return made(s, "PASSL", whole, options=more, beside=beside)


def settings(path: Path, overrides: Sequence[str]) -> Settings:
    """Read a file and apply overrides such as Global.epochs=150, whose values are Python literals or texts."""
    try:
        import yaml
    except ImportError:
        raise UserError(
            f"{path}: PASSL's files need PyYAML, which this interpreter has not: install pyyaml, or turn the file into "
            "a recipe in Paddle's environment, `triport recipes --from FILE > mine.toml`"
        ) from None
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, or a date that no calendar has
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"cannot read {path}: it is nested too deeply") from None
    remarks: list[str] = []
    if isinstance(tree, dict) and "model" in tree and "dataloader" in tree:
        tree, remarks = passl_v1.modern(path, tree)
    if not isinstance(tree, dict) or "Global" not in tree or "Model" not in tree:
        raise UserError(f"{path} is not a PASSL configuration: it lacks Global and Model, or model and dataloader")
    s = Settings(path, flat(tree), remarks)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or "=" in text:
            raise UserError(f"-o {override}: write one key=value, for example Global.epochs=150")
        s.override(key, literal(text), f"-o {override}")
    return s


def recipe(s: Settings, processes: int, parts: tuple[str, ViT, Objective] | None = None) -> Recipe:
    """The recipe that the settings describe for so many processes, each with the file's batch."""
    task, encoder, objective = parts or model(s)
    batch = s.whole("DataLoader.Train.sampler.batch_size") * processes
    train = augmentation(s, "DataLoader.Train")
    if s.has("DataLoader.Eval"):
        evaluate = augmentation(s, "DataLoader.Eval")
    else:
        evaluate = AugmentSpec(views=(held_out(s, "DataLoader.Eval", encoder, objective),))
    classes = objective.classes if isinstance(objective, Classifier) else 0
    for split in ("Train", "Eval") if classes else ():
        s.only(f"Loss.{split}.0.CELoss.weight", 1.0)
    sampler = s.take("DataLoader.Train.sampler.name", "DistributedBatchSampler")
    if sampler not in ("RepeatedAugSampler", "DistributedBatchSampler"):
        raise UserError(f"{s.path}: the sampler {sampler} is not known here")
    s.only("DataLoader.Train.sampler.shuffle", True)
    watched = s.take("Global.eval_during_train", True)
    every = s.whole("Global.eval_interval", 1)
    return Recipe(
        name=re.sub(r"[^\w.-]", "_", s.path.stem),
        title=f"{s.path.name} of PASSL",
        source=f"PaddlePaddle/PASSL {s.path.name}",
        task=task,  # type: ignore[arg-type]
        model=ModelSpec(encoder=encoder, objective=objective),
        train=train,
        evaluate=evaluate,
        optimizer=optimizer(s, batch),
        schedule=schedule(s),
        data=DataSpec(name="imagenet", repeats=3 if sampler == "RepeatedAugSampler" else 1),
        batch=batch,
        mix=mixing(s, classes) if classes else MixSpec(),
        monitor=MonitorSpec(
            evaluate_every=every if watched else 10**6 if classes else 1,
            save_every=s.whole("Global.save_interval", 1),
        ),
        seed=s.whole("Global.seed", 0),
    )


# ---------------------------------------------------------------- models
def model(s: Settings) -> tuple[str, ViT, Objective]:
    """The task and model of a name of PASSL's."""
    name = str(s.take("Model.name"))
    for pattern, make in MODELS.items():
        found = re.fullmatch(pattern, name)
        if found:
            return make(s, found)
    raise UserError(
        f"{s.path}: the model {name} is not known here: triport has MoCo v3 and MAE, and DeiT_{{tiny,small,base}}_"
        "patch16_{224,384} to fine-tune; of PASSL's names mocov3_vit_base_pretrain and mocov3_vit_base_linearprobe"
    )


def _deit(s: Settings, found: re.Match[str]) -> tuple[str, ViT, Objective]:
    """PASSL's DeiT: drawn with a deviation of 0.002, a tenth of the original's."""
    s.only("Model.drop_rate", 0.0)
    (width, heads), side = DEIT[found[1]], int(found[2])
    classes = s.whole("Model.class_num", s.take("Model.num_classes", 1000))
    encoder = ViT(
        width=width,
        depth=12,
        heads=heads,
        position="moco",
        initial_values="timm",
        image=(side, side),
        trainable_position=True,
        drop_path=s.number("Model.drop_path_rate", 0.0),
    )
    return "finetune", encoder, Classifier(classes=classes, pooling="token", head_std=0.002)


def _moco(s: Settings, found: re.Match[str]) -> tuple[str, ViT, Objective]:
    encoder = ViT(width=768, depth=12, heads=12, position="moco", initial_values="moco", frozen_patch=True)
    return "pretrain", encoder, MoCo(temperature=0.2, momentum=0.99, hidden=4096, dim=256)


def _probe(s: Settings, found: re.Match[str]) -> tuple[str, ViT, Objective]:
    classes = s.whole("Model.class_num", s.take("Model.num_classes", 1000))
    encoder = ViT(width=768, depth=12, heads=12, position="moco", initial_values="moco")
    return "linear", encoder, Classifier(classes=classes, pooling="token", head_std=0.01, frozen_encoder=True)


def _sized(s: Settings) -> dict[str, Any]:
    """The sizes that files of the older format write out."""
    for key, usual in (("qkv_bias", True), ("drop_rate", 0.0)):
        s.only(f"Model.{key}", usual)
    return {
        "width": s.whole("Model.embed_dim"),
        "depth": s.whole("Model.depth"),
        "heads": s.whole("Model.num_heads"),
        "patch": s.pair("Model.patch_size", 16),
        "image": s.pair("Model.img_size", 224),
        "mlp_ratio": s.number("Model.mlp_ratio", 4.0),
        "norm_eps": s.number("Model.epsilon", 1e-6),
        "drop_path": s.number("Model.drop_path_rate", 0.0),
    }


def _old_deit(s: Settings, found: re.Match[str]) -> tuple[str, ViT, Objective]:
    encoder = ViT(**_sized(s), position="moco", initial_values="timm", trainable_position=True)
    return "finetune", encoder, Classifier(classes=s.whole("Model.class_num", 1000), pooling="token", head_std=0.02)


def _old_mae(s: Settings, found: re.Match[str]) -> tuple[str, ViT, Objective]:
    objective = MAE(
        normalised_pixels=s.flag("Model.norm_pix_loss", False),
        mask_ratio=s.number("Model.mask_ratio", 0.75),
        decoder_width=s.whole("Model.decoder_embed_dim", 512),
        decoder_depth=s.whole("Model.decoder_depth", 8),
        decoder_heads=s.whole("Model.decoder_num_heads", 16),
    )
    return "pretrain", ViT(**_sized(s), position="mae", initial_values="mae"), objective


def _old_mae_tuned(s: Settings, found: re.Match[str]) -> tuple[str, ViT, Objective]:
    s.only("Model.in_channels", s.left.get("Model.embed_dim"))
    encoder = ViT(**_sized(s), position="mae", initial_values="timm", trainable_position=True)
    return "finetune", encoder, Classifier(classes=s.whole("Model.class_num", 1000), pooling="mean", head_std=2e-5)


MODELS: dict[str, Callable[[Settings, re.Match[str]], tuple[str, ViT, Objective]]] = {
    r"DeiT_(tiny|small|base)_patch16_(224|384)": _deit,
    "mocov3_vit_base_pretrain|mocov3_pretrain_vit_base": _moco,  # the second is PASSL's first name for it
    "mocov3_vit_base_linearprobe": _probe,
    "v1 DeiTWrapper": _old_deit,
    "v1 MAE_PRETRAIN": _old_mae,
    "v1 MAE_FINETUNE": _old_mae_tuned,
}
