"""LazyConfig files of one's own writing, in a checkout as LiBai's: field by field what recipe they become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triport.core.errors import UserError
from triport.core.spec import (
    MAE,
    Classifier,
    ColorJitter,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    MixSpec,
    MoCo,
    OptimizerSpec,
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    ScheduleSpec,
    Solarize,
    ViT,
    schema,
)
from triport.core.spec.foreign import libai
from triport.core.spec.foreign.reading import Reading
from triport.core.spec.foreign.settings import Settings, flat

# What lies in configs/common of a checkout, with numbers of this test's own.
COMMON = {
    "configs/common/train.py": """
from omegaconf import DictConfig
from libai.config import LazyCall
from libai.scheduler import WarmupCosineLR
train = DictConfig(dict(output_dir="./o", train_micro_batch_size=4, global_batch_size=None, num_accumulation_steps=None,
    train_iter=50, train_epoch=0, warmup_ratio=0, amp=dict(enabled=False), checkpointer=dict(period=7, max_to_keep=5,
    save_model_after_n_epoch=None), evaluation=dict(enabled=True, eval_after_n_epoch=None), load_weight="",
    log_period=3,
    scheduler=LazyCall(WarmupCosineLR)(warmup_factor=0.01, alpha=0.02, warmup_method="linear"), seed=11,
    dist=dict(data_parallel_size=1, tensor_parallel_size=1, pipeline_parallel_size=1)))
""",
    "configs/common/optim.py": """
import oneflow as flow
from libai.optim import get_default_optimizer_params
from libai.config import LazyCall
optim = LazyCall(flow.optim.AdamW)(params=LazyCall(get_default_optimizer_params)(clip_grad_max_norm=2.5,
    clip_grad_norm_type=2.0, weight_decay_norm=0.0, weight_decay_bias=0.0), lr=1e-4, weight_decay=0.03,
    betas=(0.8, 0.99), eps=1e-7, do_bias_correction=True)
""",
    "configs/common/models/graph.py": "graph = dict(enabled=True, debug=-1)",
    "configs/common/data/imagenet.py": """
from flowvision import transforms
from flowvision.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from flowvision.data.auto_augment import rand_augment_transform
from flowvision.data.random_erasing import RandomErasing
from flowvision.transforms import InterpolationMode
from flowvision.transforms.functional import str_to_interp_mode
from libai.config import LazyCall
from libai.data.datasets import ImageNetDataset
from omegaconf import OmegaConf
scale = [LazyCall(transforms.ToTensor)(),
         LazyCall(transforms.Normalize)(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)]
train_aug = LazyCall(transforms.Compose)(transforms=[
    LazyCall(transforms.RandomResizedCrop)(size=32, scale=(0.3, 0.9), ratio=(0.5, 2.0),
        interpolation=InterpolationMode.BICUBIC),
    LazyCall(transforms.RandomHorizontalFlip)(p=0.4),
    LazyCall(rand_augment_transform)(config_str="rand-m7-n3-mstd0.25-inc1", hparams=dict(translate_const=int(32 * 0.45),
        img_mean=tuple([min(255, round(255 * x)) for x in IMAGENET_DEFAULT_MEAN]),
        interpolation=str_to_interp_mode("bicubic"))),
    *scale, LazyCall(RandomErasing)(probability=0.2, mode="pixel", max_count=1, num_splits=0, device="cpu")])
test_aug = LazyCall(transforms.Compose)(transforms=[
    LazyCall(transforms.Resize)(size=40, interpolation=InterpolationMode.BICUBIC),
    LazyCall(transforms.CenterCrop)(size=32), *scale])
dataloader = OmegaConf.create()
dataloader.train = dict(dataset=[LazyCall(ImageNetDataset)(root="./d", train=True, transform=train_aug)], num_workers=2)
dataloader.test = [dict(dataset=LazyCall(ImageNetDataset)(root="./d", train=False, transform=test_aug), num_workers=2)]
""",
    "configs/common/__init__.py": "raise SystemExit",
}
HEAD = """
from libai.config import LazyCall, get_config
train, optim = get_config("common/train.py").train, get_config("common/optim.py").optim
graph = get_config("common/models/graph.py").graph
dataloader = get_config("common/data/imagenet.py").dataloader
"""
SIZE = "img_size=32, patch_size=8, in_chans=3, embed_dim=48, depth=3, num_heads=4, mlp_ratio=2"
TUNED = f"""{HEAD}
from omegaconf import OmegaConf
from flowvision.data import Mixup
from modeling.vit import VisionTransformer
from utils.lr_decay import param_groups_lrd
from utils.scheduler import warmup_layerscale_cosine_lr_scheduler
model = LazyCall(VisionTransformer)({SIZE}, drop_path_rate=0.15, global_pool=True, num_classes=7)
finetune = OmegaConf.create()
finetune.enable, finetune.weight_style, finetune.path = True, "pytorch", "mae.pth"
dataloader.train.mixup_func = LazyCall(Mixup)(mixup_alpha=0.7, cutmix_alpha=0.9, prob=0.6, switch_prob=0.3,
    mode="batch", label_smoothing=0.05, num_classes=model.num_classes)
train.num_accumulation_steps, train.train_epoch, train.warmup_ratio = 2, 20, 3 / 20
train.layer_decay = 0.8
train.amp.enabled = True
train.dist.data_parallel_size = 8
optim.params._target_ = param_groups_lrd
optim.params.weight_decay, optim.params.layer_decay = 0.04, 0.8
optim.lr = 5e-4 * train.train_micro_batch_size * 2 * 8 / 256
for key in ("clip_grad_max_norm", "clip_grad_norm_type", "weight_decay_norm", "weight_decay_bias"):
    del optim.params[key]
del optim.weight_decay
train.scheduler = LazyCall(warmup_layerscale_cosine_lr_scheduler)(warmup_factor=0.1, min_lr=2e-6)
"""
MASKED = f"""{HEAD}
from functools import partial
from libai.layers import LayerNorm
from modeling.mae import MaskedAutoencoderViT
from utils.lr_decay import param_groups_weight_decay
from .models.small import model
optim.params._target_ = param_groups_weight_decay
optim.params.weight_decay = 0.07
for key in ("clip_grad_max_norm", "clip_grad_norm_type"):
    del optim.params[key]
del dataloader.test
train.global_batch_size, train.train_epoch = 64, 10
dataloader.train.dataset[0].transform.transforms.pop(2)
dataloader.train.dataset[0].transform.transforms.pop(-1)
"""
MASKED_MODEL = f"""
from functools import partial
from libai.config import LazyCall
from libai.layers import LayerNorm
from modeling.mae import MaskedAutoencoderViT
model = LazyCall(MaskedAutoencoderViT)({SIZE}, decoder_embed_dim=24, decoder_depth=1, decoder_num_heads=2,
    norm_layer=partial(LayerNorm, eps=1e-6), norm_pix_loss=True, mask_ratio=0.5)
"""
MOCO = f"""{HEAD}
from flowvision import transforms
from modeling.moco import MoCo_ViT
from modeling.vit import VisionTransformer
from transform.pretrain import Solarize, Twice as TwoCropsTransform, GaussianBlur, end
def_size = dict({SIZE}, drop_path_rate=0.0, global_pool=False, stop_grad_conv1=True)
model = LazyCall(MoCo_ViT)(base_encoder=LazyCall(VisionTransformer)(**def_size),
    momentum_encoder=LazyCall(VisionTransformer)(**def_size), dim=6, mlp_dim=12, T=0.3, m=0.95)
first = [LazyCall(transforms.RandomResizedCrop)(size=32, scale=(0.2, 1.0)),
    LazyCall(transforms.RandomApply)(p=0.8, transforms=[LazyCall(transforms.ColorJitter)(brightness=0.4, contrast=0.3,
        saturation=0.2, hue=0.1)]),
    LazyCall(transforms.RandomGrayscale)(p=0.25),
    LazyCall(transforms.RandomApply)(p=0.9, transforms=[LazyCall(GaussianBlur)(sigma=[0.2, 1.5])])]
second = [*first, LazyCall(transforms.RandomApply)(p=0.2, transforms=[LazyCall(Solarize)()])]
dataloader.train.dataset[0].transform = LazyCall(TwoCropsTransform)(
    base_transform1=LazyCall(transforms.Compose)(transforms=first + end),
    base_transform2=LazyCall(transforms.Compose)(transforms=second + end))
train.train_epoch, train.warmup_ratio = 30, 0.1
train.scheduler.alpha = 0.001
optim.lr = 3e-4
graph.enabled = False
"""
PIECES = """
from flowvision import transforms
from libai.config import LazyCall
from flowvision.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
import a_package_that_nobody_has
class GaussianBlur(a_package_that_nobody_has.Base): ...
class Solarize: ...
class TwoCropsTransform: ...
Twice = TwoCropsTransform
end = [LazyCall(transforms.RandomHorizontalFlip)(), LazyCall(transforms.ToTensor)(),
       LazyCall(transforms.Normalize)(mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)]
"""
PROBE = f"""{HEAD}
from oneflow.optim import SGD
from modeling.vit import VisionTransformer
model = LazyCall(VisionTransformer)({SIZE}, drop_path_rate=0.0, global_pool=False, linear_prob="m.pth.tar",
    weight_style="pytorch")
dataloader.train.dataset[0].transform.transforms.pop(2)
dataloader.train.dataset[0].transform.transforms.pop(-1)
optim._target_ = SGD
for name in ("clip_grad_max_norm", "clip_grad_norm_type", "weight_decay_norm", "weight_decay_bias"):
    optim.params[name] = None
del optim.betas, optim.eps, optim.do_bias_correction
optim.lr, optim.weight_decay, optim.momentum = 12.0, 0.0, 0.85
train.train_epoch, train.scheduler.alpha, train.scheduler.warmup_iter = 90, 0, 0
"""
PROJECT = {
    "projects/OWN/configs/tuned.py": TUNED,
    "projects/OWN/configs/masked.py": MASKED,
    "projects/OWN/configs/models/small.py": MASKED_MODEL,
    "projects/OWN/configs/moco.py": MOCO,
    "projects/OWN/configs/probe.py": PROBE,
    "projects/OWN/transform/pretrain.py": PIECES,
    "projects/OWN/modeling/vit.py": "raise SystemExit('training code was run')\nclass VisionTransformer: ...",
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("libai")
    for name, text in {**COMMON, **PROJECT}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "projects/OWN/configs"


def notes(reading: Reading) -> str:
    return "\n".join(reading.notes)


FLIP = HorizontalFlip(p=0.4)
CROP = RandomResizedCrop(min_area=0.3, max_area=0.9, ratio=(0.5, 2.0), interpolation="bicubic", size=(32, 32))
ENCODER: dict[str, Any] = {"width": 48, "depth": 3, "heads": 4, "patch": (8, 8), "image": (32, 32), "mlp_ratio": 2.0}
LIBAIS = {**ENCODER, "norm_eps": 1e-5}  # where a file sets no layer norm


def test_fine_tuning_field_by_field(checkout: Path) -> None:
    reading = libai.read(checkout / "tuned.py", processes=2)
    one = reading.recipe
    assert one.task == "finetune" and (one.batch, one.seed) == (4 * 2 * 8, 11)
    encoder = ViT(**LIBAIS, position="mae", initial_values="timm", trainable_position=True, drop_path=0.15)
    assert one.model.encoder == encoder
    head = Classifier(classes=7, pooling="mean", head_std=2e-5)
    assert one.model.objective == head
    assert one.optimizer == OptimizerSpec(
        kind="adamw", lr=5e-4 * 64 / 256, lr_batch=64, weight_decay=0.04, decays="matrices_but_tokens",
        betas=(0.8, 0.99), eps=1e-7, layer_decay=0.8,
    )  # fmt: skip
    assert one.schedule == ScheduleSpec(epochs=20, warmup_epochs=3, min_lr=2e-6, warmup_lr=5e-4 * 64 / 256 * 0.1)
    rand = RandAugment(magnitude=7.0, operations=3, deviation=0.25)
    assert one.train.views == ((CROP, FLIP, rand, RandomErasing(p=0.2)),)
    assert one.evaluate.views[0][0] == Resize(size=40, interpolation="bicubic")
    assert one.mix == MixSpec(mixup=0.7, cutmix=0.9, probability=0.6, switch=0.3, smoothing=0.05)
    wanted = {
        "--out": "./o",
        "--log-steps": 3,
        "--data": "./d",
        "--workers": 2,
        "--micro-batch": 4,
        "--weights": "mae.pth",
    }
    assert reading.options == wanted and reading.beside == {"data": 8, "tensor": 1, "pipeline": 1, "graph": True}
    assert "train.amp.enabled = True: off" in notes(reading) and "graph.enabled = True" in notes(reading)
    assert "train.dist.data_parallel_size = 8: the batch stays 64" in notes(reading)
    assert "train.train_iter = 50" in notes(reading)
    drawn = {"finetune.weight_style": "oneflow"}, {"finetune.enable": False}  # LiBai's own head then stays
    for changes in drawn:
        assert libai.read(checkout / "tuned.py", changes).recipe.model.objective == replace(head, head_std=0.02)


def test_masked_pretraining_field_by_field(checkout: Path) -> None:
    reading = libai.read(checkout / "masked.py", processes=4)
    one = reading.recipe
    assert one.model.encoder == ViT(**ENCODER, position="mae", initial_values="mae")
    assert one.model.objective == MAE(
        normalised_pixels=True, mask_ratio=0.5, decoder_width=24, decoder_depth=1, decoder_heads=2
    )
    assert one.task == "pretrain" and one.batch == 64 and reading.options["--micro-batch"] == 4
    assert (one.optimizer.decays, one.optimizer.weight_decay, one.optimizer.clip_norm) == ("matrices", 0.07, None)
    assert one.schedule == ScheduleSpec(epochs=10, warmup_epochs=0, min_lr=1e-4 * 0.02)
    assert one.train.views == ((CROP, FLIP),) and "dataloader.test is not there" in notes(reading)


def test_moco_pretraining_field_by_field(checkout: Path) -> None:
    reading = libai.read(checkout / "moco.py", processes=4)
    one = reading.recipe
    assert one.model.encoder == ViT(**LIBAIS, position="moco", initial_values="moco", frozen_patch=True)
    assert one.model.objective == MoCo(temperature=0.3, momentum=0.95, hidden=12, dim=6, momentum_compounds=True)
    first = (
        RandomResizedCrop(min_area=0.2, interpolation="bilinear", size=(32, 32)),
        ColorJitter(p=0.8, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1),
        Grayscale(p=0.25),
        GaussianBlur(p=0.9, min_sigma=0.2, max_sigma=1.5),
    )
    flip = HorizontalFlip(p=0.5)
    assert one.train.views == ((*first, flip), (*first, Solarize(p=0.2), flip))
    assert one.batch == 16 and "--micro-batch" not in reading.options  # LiBai's rule: a device's batch x processes
    assert (one.optimizer.lr, one.optimizer.lr_batch, one.optimizer.clip_norm) == (3e-4, 16, 2.5)
    assert (one.optimizer.decays, one.optimizer.weight_decay) == ("matrices", 0.03)
    schedule = ScheduleSpec(
        epochs=30, warmup_epochs=3, warmup_lr=3e-4 * 0.01, min_lr=3e-4 * 0.001, cosine="whole", warmup_end="cosine"
    )
    assert one.schedule == schedule
    assert "feeds each momentum into the next step's cosine" in notes(reading)
    assert "train a scale and a shift; here they have none" in notes(reading)
    with pytest.raises(
        UserError, match=r"drop_path_rate is 0\.1: .* override it with model\.base_encoder\.drop_path_rate=0 "
    ):
        both = {f"model.{side}.drop_path_rate": 0.1 for side in ("base_encoder", "momentum_encoder")}
        libai.read(checkout / "moco.py", both)


def test_schedulers_are_preserved_as_libai_has_them(checkout: Path) -> None:
    warm = {"train.warmup_ratio": 0.2, "train.scheduler._target_": "warmup_cosine_lr_scheduler"}
    reading = libai.read(checkout / "tuned.py", warm)
    one = reading.recipe.schedule
    assert (one.warmup_epochs, one.cosine, one.warmup_end, one.min_lr) == (4, "early", "cosine", 2e-6)
    assert "4 epochs early and rises again; schedule.cosine=after_warmup is the paper's" in notes(reading)
    reading = libai.read(
        checkout / "tuned.py", {"train.scheduler._target_": "warmup_cosine_lr_scheduler", "train.warmup_ratio": 0}
    )
    assert (reading.recipe.schedule.cosine, reading.recipe.schedule.warmup_end) == ("after_warmup", "peak")
    s = Settings(checkout / "moco.py", flat(libai.read_tree(checkout / "moco.py")))
    s.left |= {"train.scheduler._target_": "WarmupCosineAnnealingLR", "train.scheduler.eta_min": 3e-6}
    one = libai.reading(s).recipe.schedule
    assert (one.cosine, one.warmup_end, one.min_lr) == ("whole", "cosine", 3e-6)
    assert "train.scheduler.alpha = 0.001: not known here" in "\n".join(s.remarks)


def test_a_probe_field_by_field(checkout: Path) -> None:
    reading = libai.read(checkout / "probe.py", processes=2)
    one = reading.recipe
    head = Classifier(classes=1000, pooling="token", head_std=0.01, frozen_encoder=True)
    assert one.task == "linear" and one.model.objective == head and reading.options["--weights"] == "m.pth.tar"
    rule = one.optimizer
    assert (rule.kind, rule.lr, rule.momentum, rule.weight_decay, rule.decays) == ("sgd", 12.0, 0.85, 0, "all")
    assert (one.schedule.warmup_epochs, one.schedule.min_lr, one.schedule.warmup_lr) == (0, 0, 0)
    assert "train.scheduler.warmup_iter = 0" in notes(reading)


def test_deviations_from_the_paper_are_preserved_and_listed(checkout: Path) -> None:
    whole = {"model.base_encoder.embed_dim": 384, "model.base_encoder.depth": 12, "model.base_encoder.num_heads": 12}
    both = {**whole, **{key.replace("base", "momentum"): value for key, value in whole.items()}}
    printed = "\n".join(libai.read(checkout / "moco.py", both, processes=4).report())
    for line in (
        "train.views.0.random_resized_crop.min_area is 0.2, there 0.08",
        "train.views.1.gaussian_blur.p is 0.9",
        "optimizer.clip_norm is 2.5, there absent",
        "learning rate of the whole batch is 0.0003",
        "model.encoder.norm_eps is 1e-05, there 1e-06",
        "model.objective.momentum_compounds is True, there False",
        "schedule.cosine is whole, there after_warmup",
        "schedule.warmup_end is cosine, there peak",
    ):
        assert f"LiBai's file differs from moco_v3/vit_small_300ep here: {line}" in printed


# ---------------------------------------------------------------- nothing is dropped
def leaves() -> list[tuple[str, str]]:
    """Every setting of the four files, found once more in a folder of their own."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        for file, text in {**COMMON, **PROJECT}.items():
            (Path(name) / file).parent.mkdir(parents=True, exist_ok=True)
            (Path(name) / file).write_text(text)
        folder = Path(name, "projects/OWN/configs")
        files = ("tuned.py", "masked.py", "moco.py", "probe.py")
        return [
            (file, key)
            for file in files
            for key, value in flat(libai.read_tree(folder / file)).items()
            if value is not None
        ]


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value / 2 or 0.5
    return value[:-1] if isinstance(value, list) else f"{value}x"


def outcome(s: Settings) -> tuple[Any, ...]:
    reading = libai.reading(s, 8)
    return schema.plain(reading.recipe), reading.options, reading.beside, reading.notes


@pytest.mark.parametrize(("file", "key"), leaves())
def test_no_setting_is_dropped_silently(checkout: Path, file: str, key: str) -> None:
    """Whatever is changed changes the recipe, the options, the degrees or what is said, or is refused."""
    settings = flat(libai.read_tree(checkout / file))
    plain = outcome(Settings(checkout / file, dict(settings)))
    if key in ("dataloader.train.dataset.0.train", "dataloader.test.0.dataset.train"):
        return  # says which split it is, where the place says it too
    changed = Settings(checkout / file, {**settings, key: another(settings[key])})
    try:
        found = outcome(changed)
    except UserError:
        return
    assert changed.left == {} and found != plain


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("key", "value", "printed"),
    [
        ("model._target_", "SwinTransformer", "the model SwinTransformer is not known here"),
        ("train.train_epoch", 0, "say how many epochs"),
        ("train.global_batch_size", 24, "global_batch_size 24 is not train.train_micro_batch_size 4"),
        ("optim._target_", "Adagrad", "optim._target_ is 'Adagrad'"),
        ("optim.params._target_", "own_groups", "own_groups is not known here"),
        ("train.scheduler._target_", "WarmupStepLR", "WarmupStepLR is not known here"),
        ("model.drop_rate", 0.1, "model.drop_rate is 0.1"),
        ("train.layer_decay", 0.5, "is not optim.params.layer_decay"),
        ("dataloader.train.mixup_func.mode", "pair", "mode is 'pair'"),
        ("dataloader.test.0.dataset.root", "/other", "name one with --data"),
        ("train.train_epoc", 5, "nothing reads train.train_epoc. Did you mean 'train.train_epoch'?"),
    ],
)
def test_what_cannot_be_done_is_refused(checkout: Path, key: str, value: Any, printed: str) -> None:
    with pytest.raises(UserError, match=r"tuned\.py") as error:
        libai.read(checkout / "tuned.py", {key: value})
    assert printed in str(error.value) and "\n" not in str(error.value)


def test_data_on_the_command_line_goes_before_splits_in_different_folders(checkout: Path) -> None:
    apart = {"dataloader.test.0.dataset.root": "/other"}
    for words in (["--data", "/mine"], ["--data=/mine"]):
        reading = libai.read(checkout / "tuned.py", apart, given=words)
        assert "--data" not in reading.options
        assert any("dataset.root = /other" in note for note in reading.notes)


def test_a_file_outside_of_a_checkout_says_where_it_belongs(tmp_path: Path) -> None:
    (tmp_path / "alone.py").write_text(TUNED)
    with pytest.raises(UserError, match=r"get_config\('common/train\.py'\) is of LiBai's checkout"):
        libai.read(tmp_path / "alone.py")
    with pytest.raises(UserError, match="there is none"):
        libai.read(tmp_path / "absent.py")
