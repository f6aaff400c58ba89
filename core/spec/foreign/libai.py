"""LiBai's LazyConfig files as recipes: projects/MAE and projects/MOCOV3 as they lie in a checkout.

The file is read, not executed; the checkout is found from the file's own path, whatever is installed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triport.core.errors import UserError
from triport.core.spec.foreign import libai_views as views
from triport.core.spec.foreign.libai_training import optimizer, options, schedule
from triport.core.spec.foreign.python_file import Files
from triport.core.spec.foreign.reading import Reading, made
from triport.core.spec.foreign.settings import Settings, flat
from triport.core.spec.foreign.shared_views import held_out
from triport.core.spec.foreign.values import Lazy, Tree, plain
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

LIBAI_EPS = 1e-5  # of layer norms, where a file sets nothing else
SECTIONS = ("train", "optim", "graph", "model", "dataloader", "finetune", "recipe", "eval_only")
ELSEWHERE = {  # what becomes of settings that have no counterpart
    "eval_only": "`triport evaluate` measures",
    "finetune": "named by --weights here",
    "graph": "OneFlow's graphs are set up by the backend",
    "train.train_iter": "the run is as long as its epochs say; LiBai would take at least so many steps",
    "train.consumed_train_samples": "a resumed run knows where it was",
    "train.consumed_valid_samples": "a resumed run knows where it was",
    "train.train_samples": "the data says how many images there are",
    "train.start_iter": "a resumed run knows where it was",
    "train.amp": "only switched on or off",
    "train.activation_checkpoint.enabled": "activations are kept",
    "train.zero_optimization": "not used",
    "train.nccl_fusion_threshold_mb": "of GPUs",
    "train.nccl_fusion_max_ops": "of GPUs",
    "train.rdma_enabled": "of several machines",
    "train.input_placement_device": "--device says where",
    "train.checkpointer": "monitor.save_every and monitor.keep say which checkpoints are kept, in epochs",
    "train.evaluation": "monitor.evaluate_every says after how many epochs; top-1 and top-5 of all images are measured",
    "train.eval_period": "monitor.evaluate_every says after how many epochs",
    "train.test_micro_batch_size": "images are scored in batches as large as training's",
    "train.load_weight": "--resume DIR goes on with a run, --weights FILE begins with an encoder",
    "train.scheduler.warmup_iter": "LiBai reckons it from train.warmup_ratio, and so it is here",
    "train.scheduler.max_iter": "LiBai reckons it from the epochs, and so it is here",
    "train.dist": "the launcher says how many processes there are",
    "dataloader.train.dataset": "--data names the folder that holds train and val",
    "dataloader.test": "every image of val is scored once",
    "dataloader.train": "batches always come through shared memory",
    "model": "not known here, without effect",
    "": "not known here, without effect",
}


def read_tree(path: Path) -> dict[str, Any]:
    """Return the sections of a LazyConfig file as plain values."""
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--libai-config {path}: LiBai's LazyConfig files are Python files; there is none.")
    path = path.resolve()
    project = next((folder.parent for folder in path.parents if folder.name == "configs"), path.parent)
    checkout = next((folder for folder in path.parents if (folder / "configs" / "common").is_dir()), None)
    roots = [project, *([checkout] if checkout else []), path.parent]

    def get_config(name: str) -> Tree:
        if checkout is None or not (checkout / "configs" / name).is_file():
            raise UserError(
                f"{path}: get_config('{name}') is of LiBai's checkout, in which this file does not lie: read it where "
                "it lies there, in projects/…/configs, or write out what it says."
            )
        return Tree(files.load(checkout / "configs" / name))

    files = Files(roots, {"LazyCall": Lazy, "get_config": get_config})
    scope = files.load(path)
    return {name: plain(value) for name, value in scope.items() if name in SECTIONS}


def read(
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    processes: int = 1,
    own: Sequence[str] = (),
    given: Sequence[str] = (),
) -> Reading:
    """Read a LazyConfig file for so many processes.

    overrides: settings of the command line by LiBai's names; own: overrides of the recipe, where it needs them;
    given: words of the run.
    """
    s = Settings(path, flat(read_tree(path)), own=list(own))
    for key, value in (overrides or {}).items():
        s.override(key, value, f"{key}={value}")
    return reading(s, processes, given)


def reading(s: Settings, processes: int = 1, given: Sequence[str] = ()) -> Reading:
    """Read the settings of a file for so many processes."""
    path = s.path
    if "recipe.name" in s.left:
        raise UserError(f"{path} says what it changes of the recipe {s.left['recipe.name']}: give it to --libai-config")
    if not s.has("model") or not s.has("train"):
        raise UserError(f"{path} is not a configuration of LiBai: it has no model and train")
    kind = str(s.take("model._target_", ""))
    if kind not in MODELS:
        raise UserError(f"{path}: the model {kind or '(none)'} is not known here: {', '.join(MODELS)} are")
    task, encoder, objective = MODELS[kind](s)
    degrees = {name: s.whole(f"train.dist.{name}_parallel_size", 1) for name in ("data", "tensor", "pipeline")}
    batch, more = options(s, task, degrees, processes, given)
    train, evaluate = augmentation(s, encoder, objective)
    classes = objective.classes if isinstance(objective, Classifier) else 0
    mix = views.mixing(s, "dataloader.train.mixup_func", classes)
    recipe = Recipe(
        name=f"libai_{path.stem}",
        title=f"{path.name} of LiBai",
        source=f"Oneflow-Inc/libai {path.name}",
        task=task,
        model=ModelSpec(encoder=encoder, objective=objective),
        train=train,
        evaluate=evaluate,
        optimizer=optimizer(s, batch),
        schedule=schedule(s),
        data=DataSpec(name="imagenet"),
        batch=batch,
        mix=mix if isinstance(objective, Classifier) else MixSpec(),
        monitor=monitor(s),
        seed=s.whole("train.seed", 0),
    )
    graph = s.flag("graph.enabled", False)
    if graph:
        s.remarks.append("graph.enabled = True: a step is compiled where the model is in parts; others run eagerly")
    if s.flag("train.amp.enabled", False):
        s.remarks.append("train.amp.enabled = True: off, as OneFlow computes in float32 here (always on CPUs)")
    s.forget_all(ELSEWHERE)
    return made(s, "LiBai", recipe, options=more, beside={**degrees, "graph": bool(graph)})


# ---------------------------------------------------------------- models
def _vit(s: Settings, key: str, position: str, drawn: str, **more: Any) -> ViT:
    s.only(f"{key}.drop_rate", 0.0)
    s.only(f"{key}.attn_drop_rate", 0.0)
    if s.has(f"{key}.norm_layer"):
        s.remarks.append(f"{key}.norm_layer: here of every layer norm; LiBai's blocks do not take it and have eps 1e-5")
    s.one_of(f"{key}.norm_layer._target_", ("partial",), "partial")
    s.one_of(f"{key}.norm_layer._0", ("LayerNorm",), "LayerNorm")
    return ViT(
        width=s.whole(f"{key}.embed_dim"),
        depth=s.whole(f"{key}.depth"),
        heads=s.whole(f"{key}.num_heads"),
        patch=s.pair(f"{key}.patch_size", 16),
        image=s.pair(f"{key}.img_size", 224),
        channels=s.whole(f"{key}.in_chans", 3),
        mlp_ratio=s.number(f"{key}.mlp_ratio", 4.0),
        norm_eps=s.number(f"{key}.norm_layer.eps", LIBAI_EPS),
        drop_path=s.number(f"{key}.drop_path_rate", 0.0),
        position=position,  # type: ignore[arg-type]
        initial_values=drawn,  # type: ignore[arg-type]
        **more,
    )


def _mae(s: Settings) -> tuple[Any, ViT, Objective]:
    objective = MAE(
        normalised_pixels=s.flag("model.norm_pix_loss", False),
        mask_ratio=s.number("model.mask_ratio", 0.75),
        decoder_width=s.whole("model.decoder_embed_dim", 512),
        decoder_depth=s.whole("model.decoder_depth", 8),
        decoder_heads=s.whole("model.decoder_num_heads", 16),
    )
    return "pretrain", _vit(s, "model", "mae", "mae"), objective


def _moco(s: Settings) -> tuple[Any, ViT, Objective]:
    sides = [
        {key.removeprefix(f"model.{side}."): value for key, value in s.left.items() if key.startswith(f"model.{side}.")}
        for side in ("base_encoder", "momentum_encoder")
    ]
    if sides[0] != sides[1]:
        raise UserError(f"{s.path}: model.base_encoder and model.momentum_encoder differ; here they are alike")
    for key in sides[1]:
        s.take(f"model.momentum_encoder.{key}", None)
    s.only("model.base_encoder._target_", "VisionTransformer")
    s.only("model.base_encoder.global_pool", False)
    rate = s.number("model.base_encoder.drop_path_rate", 0.0)
    if rate:
        both = " ".join(f"model.{side}.drop_path_rate=0" for side in ("base_encoder", "momentum_encoder"))
        raise UserError(
            f"{s.path}: model.base_encoder.drop_path_rate is {rate:g}: pretraining drops no paths here, as in the "
            f"paper; override it with {both}"
        )
    frozen = s.flag("model.base_encoder.stop_grad_conv1", False)
    objective = MoCo(
        temperature=s.number("model.T"),
        momentum=s.number("model.m"),
        hidden=s.whole("model.mlp_dim"),
        dim=s.whole("model.dim"),
        momentum_compounds=True,
    )
    s.remarks.append(
        "model.m: kept as LiBai's trainer takes it, which feeds each momentum into the next step's cosine, so that the "
        "momentum encoder soon stands still; model.objective.momentum_compounds=false is the paper's momentum"
    )
    s.remarks.append(
        "LiBai's projector and predictor end in batch norms that train a scale and a shift; here they have none, as in "
        "the paper, so losses differ from LiBai's once these would have moved"
    )
    return "pretrain", _vit(s, "model.base_encoder", "moco", "moco", frozen_patch=frozen), objective


def _classifier(s: Settings) -> tuple[Any, ViT, Objective]:
    mean, classes = s.flag("model.global_pool", False), s.whole("model.num_classes", 1000)
    s.one_of("model.loss_func._target_", ("SoftTargetCrossEntropy", "CrossEntropyLoss"), "CrossEntropyLoss")
    if s.has("model.linear_prob"):
        if mean:
            raise UserError(f"{s.path}: model.global_pool is True; a probe here takes the class token")
        head = Classifier(classes=classes, pooling="token", head_std=0.01, frozen_encoder=True)
        s.take("model.stop_grad_conv1", False)
        return "linear", _vit(s, "model", "moco", "moco"), head
    pooling, position = ("mean", "mae") if mean else ("token", "moco")
    # weight_convert.py draws the head with 2e-5 after it has read a .pth, all else keeps the model's own 0.02
    reads = s.left.get("finetune.enable") is True and s.left.get("finetune.weight_style") in ("pytorch", "triport")
    deviation = 2e-5 if reads else 0.02
    vit = _vit(s, "model", position, "timm", trainable_position=True)
    return "finetune", vit, Classifier(classes=classes, pooling=pooling, head_std=deviation)  # type: ignore[arg-type]


MODELS = {"MaskedAutoencoderViT": _mae, "MoCo_ViT": _moco, "VisionTransformer": _classifier}


# ---------------------------------------------------------------- data
def augmentation(s: Settings, encoder: ViT, objective: Objective) -> tuple[AugmentSpec, AugmentSpec]:
    """The views of training and of scoring; where the file has no held-out images, those of the paper."""
    key, test = "dataloader.train.dataset.0.transform", "dataloader.test.0.dataset.transform"
    train = views.two_views(s, key) if isinstance(objective, MoCo) else views.one_view(s, key)
    if s.has(test):
        return train, views.one_view(s, test)
    view = held_out(s, "dataloader.test", encoder, objective)
    return train, AugmentSpec(views=(view,), mean=train.mean, std=train.std)


def monitor(s: Settings) -> MonitorSpec:
    """How often is saved and scored, where the file counts in epochs."""
    return MonitorSpec(
        save_every=s.whole("train.checkpointer.save_model_after_n_epoch", 1),
        keep=s.whole("train.checkpointer.max_to_keep", 3),
        evaluate_every=s.whole("train.evaluation.eval_after_n_epoch", 1),
    )
