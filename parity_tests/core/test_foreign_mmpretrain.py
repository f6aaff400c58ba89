"""Configurations as mmpretrain writes them, of one's own: field by field what recipe they become, in both styles."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from triport.core.errors import UserError
from triport.core.spec import (
    MAE,
    CenterCrop,
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
    ResNet,
    ScheduleSpec,
    Solarize,
    ViT,
    schema,
)
from triport.core.spec.foreign import hand_over, mmpretrain
from triport.core.spec.foreign.settings import Settings, flat

DATA = """
data_preprocessor = dict(mean=[127.5, 114.75, 102], std=[63.75, 51, 25.5], to_rgb=True)
bgr = data_preprocessor['mean'][::-1]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=96, crop_ratio_range=(0.25, 0.9), backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.4, direction='horizontal'),
    dict(type='RandAugment', policies='timm_increasing', num_policies=3, total_level=10, magnitude_level=8,
         magnitude_std=0.4, hparams=dict(pad_val=[round(x) for x in bgr], interpolation='bicubic')),
    dict(type='RandomErasing', erase_prob=0.2, mode='rand', min_area_ratio=0.03, max_area_ratio=1 / 3, fill_color=bgr),
    dict(type='PackInputs')]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=112, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=96), dict(type='PackInputs')]
train_dataloader = dict(batch_size=6, num_workers=3, dataset=dict(type='ImageNet', data_root='data/own',
    split='train', pipeline=train_pipeline), sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(batch_size=6, dataset=dict(type='ImageNet', pipeline=test_pipeline))
"""
RUNTIME = """
default_scope = 'mmpretrain'
default_hooks = dict(logger=dict(type='LoggerHook', interval=50), checkpoint=dict(type='CheckpointHook', interval=2))
load_from, resume = None, False
randomness = dict(seed=None, deterministic=False)
"""
SCHEDULE = """
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=7e-4, weight_decay=0.06, betas=(0.8, 0.95)),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0,
        custom_keys={'.absolute_pos_embed': dict(decay_mult=0.0)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=True, begin=0, end=4, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=16, eta_min=3e-6, by_epoch=True, begin=4, end=20, convert_to_iter_based=True)]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=20)
"""
TUNED = """
_base_ = ['../../_base_/data.py', '../../_base_/schedule.py', '../../_base_/runtime.py']
model = dict(type='ImageClassifier',
    backbone=dict(type='VisionTransformer', arch='base', img_size=96, patch_size=16, drop_path_rate=0.12,
        out_type='avg_featmap', final_norm=False,
        init_cfg=dict(type='Pretrained', checkpoint='w.pth', prefix='backbone.')),
    neck=None,
    head=dict(type='LinearClsHead', num_classes=9, in_channels=768,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.07, mode='original'),
        init_cfg=[dict(type='TruncNormal', layer='Linear', std=3e-5)]),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.6), dict(type='CutMix', alpha=0.9)]))
optim_wrapper = dict(clip_grad=dict(max_norm=4.0), constructor='LearningRateDecayOptimWrapperConstructor',
    paramwise_cfg=dict(layer_decay_rate=0.7, custom_keys={'.ln': dict(decay_mult=0.0), '.bias': dict(decay_mult=0.0),
        '.cls_token': dict(decay_mult=0.0), '.pos_embed': dict(decay_mult=0.0)}))
default_hooks = dict(checkpoint=dict(max_keep_ckpts=4))
custom_hooks = [dict(type='EMAHook', momentum=0.001, priority='ABOVE_NORMAL')]
randomness = dict(seed=5)
"""
VIEWS = """
view_one = [
    dict(type='RandomResizedCrop', scale=96, crop_ratio_range=(0.3, 1.), backend='pillow'),
    dict(type='RandomApply', prob=0.7,
         transforms=[dict(type='ColorJitter', brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1)]),
    dict(type='RandomGrayscale', prob=0.2, keep_channels=True, channel_weights=(0.114, 0.587, 0.2989)),
    dict(type='GaussianBlur', magnitude_range=(0.1, 1.5), magnitude_std='inf', prob=0.9),
    dict(type='Solarize', thr=100, prob=0.), dict(type='RandomFlip', prob=0.5)]
view_two = view_one[:4] + [dict(type='Solarize', thr=100, prob=0.3), dict(type='RandomFlip', prob=0.5)]
train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'),
    dict(type='MultiView', num_views=[1, 1], transforms=[view_one, view_two]), dict(type='PackInputs')]))
"""
NECK = "type='NonLinearNeck', hid_channels=24, out_channels=8, with_bias=False, with_last_bias=False, "
NECK += "with_last_bn_affine=False"
MOCO = f"""
_base_ = ['../_base_/data.py', '../_base_/runtime.py', '../_base_/schedule.py']
{VIEWS}
temperature = 0.25
model = dict(type='MoCoV3', base_momentum=0.02,
    backbone=dict(type='MoCoV3ViT', arch='mocov3-small', img_size=96, patch_size=16, stop_grad_conv1=True),
    neck=dict({NECK}, in_channels=384, num_layers=3, with_last_bn=True, with_avg_pool=False),
    head=dict(type='MoCoV3Head', predictor=dict({NECK}, in_channels=8, num_layers=2, with_last_bn=True),
        loss=dict(type='CrossEntropyLoss', loss_weight=2 * temperature), temperature=temperature))
optim_wrapper = dict(_delete_=True, type='AmpOptimWrapper', loss_scale='dynamic',
    optimizer=dict(type='AdamW', lr=2.4e-3, weight_decay=0.1))
auto_scale_lr = dict(base_batch_size=48)
"""
RESNET = f"""
_base_ = './moco_8xb6.py'
model = dict(
    backbone=dict(_delete_=True, type='ResNet', depth=50, norm_cfg=dict(type='SyncBN'), zero_init_residual=False),
    neck=dict({NECK}, in_channels=2048, num_layers=2, with_last_bn=True, with_avg_pool=True),
    head=dict(predictor=dict(with_last_bn=False)))
optim_wrapper = dict(optimizer=dict(_delete_=True, type='LARS', lr=9.6, weight_decay=1e-6, momentum=0.8),
    paramwise_cfg=dict(custom_keys={{'bn': dict(decay_mult=0, lars_exclude=True), 'bias': dict(decay_mult=0,
        lars_exclude=True), 'downsample.1': dict(decay_mult=0, lars_exclude=True)}}))
"""
PROBE = """
_base_ = ['../../_base_/data.py', '../../_base_/runtime.py']
train_pipeline = [dict(type='LoadImageFromFile'), dict(type='RandomResizedCrop', scale=96),
    dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
model = dict(type='ImageClassifier',
    backbone=dict(type='MoCoV3ViT', arch='base', img_size=96, patch_size=16, stop_grad_conv1=True, frozen_stages=12,
        norm_eval=True),
    head=dict(type='VisionTransformerClsHead', num_classes=1000, in_channels=768,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0), init_cfg=dict(type='Normal', std=0.02, layer='Linear')))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=12, momentum=0.9, weight_decay=0.))
param_scheduler = [dict(type='CosineAnnealingLR', T_max=30, by_epoch=True, begin=0, end=30)]
train_cfg = dict(by_epoch=True, max_epochs=30)
"""
NEW_BASE = """
from mmpretrain.models import MAE, MAEPretrainDecoder, MAEPretrainHead, MAEViT, PixelReconstructionLoss
model = dict(type=MAE, backbone=dict(type=MAEViT, arch='b', patch_size=16, mask_ratio=0.6),
    neck=dict(type=MAEPretrainDecoder, patch_size=16, in_chans=3, embed_dim=768, decoder_embed_dim=64, decoder_depth=2,
        decoder_num_heads=4, mlp_ratio=4.),
    head=dict(type=MAEPretrainHead, norm_pix=True, patch_size=16,
        loss=dict(type=PixelReconstructionLoss, criterion='L2')))
"""
NEW = """
from mmengine.config import read_base
with read_base():
    from .._base_.masked import *
    from .._base_.data import *
    from .._base_.runtime import *
    from .._base_.schedule import *
from torch.optim.adamw import AdamW
model.update(backbone=dict(arch='l', img_size=96), neck=dict(embed_dim=1024))
train_pipeline = [train_pipeline[1], train_pipeline[2]]
train_dataloader.dataset.pipeline = train_pipeline
optim_wrapper.paramwise_cfg = dict(custom_keys={'ln': dict(decay_mult=0.0), 'bias': dict(decay_mult=0.0),
    'pos_embed': dict(decay_mult=0.), 'mask_token': dict(decay_mult=0.), 'cls_token': dict(decay_mult=0.)})
optim_wrapper.optimizer.type = AdamW
randomness.update(seed=3, diff_rank_seed=True)
default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, max_keep_ckpts=3)
"""
FILES = {
    "_base_/data.py": DATA, "_base_/runtime.py": RUNTIME, "_base_/schedule.py": SCHEDULE, "_base_/masked.py": NEW_BASE,
    "mae/tuned/vit_4xb6.py": TUNED, "moco/moco_8xb6.py": MOCO, "moco/resnet_8xb6.py": RESNET,
    "moco/benchmarks/probe_2xb6.py": PROBE, "mae/masked_8xb6.py": NEW,
}  # fmt: skip
READ = [name for name in FILES if not name.startswith("_base_")]


def write(folder: Path) -> Path:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("mmpretrain"))


SCHEDULED = ScheduleSpec(epochs=20, warmup_epochs=4, min_lr=3e-6, warmup_lr=7e-6)
CROP = RandomResizedCrop(min_area=0.25, max_area=0.9, interpolation="bicubic", size=(96, 96))


def test_fine_tuning_field_by_field(checkout: Path) -> None:
    reading = mmpretrain.read(checkout / "mae/tuned/vit_4xb6.py")
    one = reading.recipe
    assert one.task == "finetune" and (one.batch, one.seed, one.monitor.keep, one.monitor.save_every) == (24, 5, 4, 2)
    assert one.model.encoder == ViT(
        width=768, depth=12, heads=12, image=(96, 96), position="mae", initial_values="timm", trainable_position=True,
        drop_path=0.12,
    )  # fmt: skip
    assert one.model.objective == Classifier(classes=9, pooling="mean", head_std=3e-5)
    assert one.optimizer == OptimizerSpec(
        kind="adamw", lr=7e-4, lr_batch=24, weight_decay=0.06, betas=(0.8, 0.95), decays="matrices_but_tokens",
        layer_decay=0.7, clip_norm=4.0, average=0.999,
    )  # fmt: skip
    assert one.schedule == SCHEDULED
    rand = RandAugment(operations=3, magnitude=8.0, deviation=0.4)
    erase = RandomErasing(p=0.2, min_area=0.03, max_area=1 / 3)
    assert one.train.views == ((CROP, HorizontalFlip(p=0.4), rand, erase),)
    assert one.evaluate.views == ((Resize(size=112, interpolation="bicubic"), CenterCrop(size=(96, 96))),)
    assert one.train.mean == one.evaluate.mean == (0.5, 0.45, 0.4) and one.train.std == (0.25, 0.2, 0.1)
    assert one.mix == MixSpec(mixup=0.6, cutmix=0.9, smoothing=0.07)
    assert reading.options == {"--data": "data/own", "--workers": 3, "--log-steps": 50, "--weights": "w.pth"}


def test_moco_field_by_field(checkout: Path) -> None:
    one = mmpretrain.read(checkout / "moco/moco_8xb6.py").recipe
    small = {"width": 384, "depth": 12, "heads": 12}
    encoder = ViT(**small, image=(96, 96), position="moco", initial_values="moco", frozen_patch=True)  # type: ignore[arg-type]
    assert one.model.encoder == encoder
    assert one.model.objective == MoCo(temperature=0.25, momentum=0.98, hidden=24, dim=8)
    first = (
        RandomResizedCrop(min_area=0.3, interpolation="bilinear", size=(96, 96)),
        ColorJitter(p=0.7, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1),
        Grayscale(p=0.2),
        GaussianBlur(p=0.9, min_sigma=0.1, max_sigma=1.5),
    )
    flip = HorizontalFlip(p=0.5)
    assert one.train.views == ((*first, flip), (*first, Solarize(p=0.3, threshold=100), flip))
    rule = one.optimizer
    assert (one.batch, rule.lr, rule.lr_batch, rule.decays, rule.weight_decay) == (48, 2.4e-3, 48, "all", 0.1)


def test_moco_of_a_resnet_field_by_field(checkout: Path) -> None:
    one = mmpretrain.read(checkout / "moco/resnet_8xb6.py").recipe
    assert one.model.encoder == ResNet(depth=50, zero_init_residual=False, image=(96, 96))
    rule = one.optimizer
    assert (rule.kind, rule.lr, rule.momentum, rule.weight_decay, rule.decays) == ("lars", 9.6, 0.8, 1e-6, "all")


def test_a_probe_field_by_field(checkout: Path) -> None:
    reading = mmpretrain.read(checkout / "moco/benchmarks/probe_2xb6.py")
    one = reading.recipe
    head = Classifier(classes=1000, pooling="token", head_std=0.02, frozen_encoder=True, frozen_mode="eval")
    assert one.task == "linear" and one.model.objective == head and one.batch == 12
    assert (one.optimizer.kind, one.optimizer.lr, one.optimizer.weight_decay) == ("sgd", 12, 0)
    assert one.schedule == ScheduleSpec(epochs=30, warmup_epochs=0, per="epoch")
    assert any("images are resized as Pillow does, not OpenCV" in note for note in reading.notes)


def test_masked_pretraining_in_the_newer_style_field_by_field(checkout: Path) -> None:
    one = mmpretrain.read(checkout / "mae/masked_8xb6.py").recipe
    assert one.model.encoder == ViT(
        width=1024, depth=24, heads=16, image=(96, 96), position="mae", initial_values="mae"
    )
    masked = MAE(normalised_pixels=True, mask_ratio=0.6, decoder_width=64, decoder_depth=2, decoder_heads=4)
    assert one.model.objective == masked and one.train.views == ((CROP, HorizontalFlip(p=0.4)),)
    assert (one.optimizer.decays, one.seed, one.monitor.save_every) == ("matrices_but_tokens", 3, 1)
    assert one.schedule == SCHEDULED


# ---------------------------------------------------------------- nothing is dropped
def settings(path: Path) -> Settings:
    tree = mmpretrain.read_tree(path)
    tree.setdefault("optim_wrapper", {})["custom_keys"] = mmpretrain.custom_keys(tree)
    return Settings(path, flat(tree))


def leaves() -> list[tuple[str, str]]:
    with tempfile.TemporaryDirectory() as name:
        found = {file: settings(write(Path(name)) / file).left for file in READ}
    return [(file, key) for file, left in found.items() for key, value in left.items() if value not in (None, {})]


def another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value / 2 or 0.5
    return value[:-1] if isinstance(value, list) else f"{value}x"


def outcome(s: Settings) -> tuple[Any, ...]:
    reading = mmpretrain.reading(s, 8)
    return schema.plain(reading.recipe), reading.options, reading.notes


REPORTED_ELSEWHERE = ("in_channels", "with_avg_pool", "in_chans", "stop_grad_conv1", "lars_exclude", "final_norm")


@pytest.mark.parametrize(("file", "key"), leaves())
def test_no_setting_is_dropped_silently(checkout: Path, file: str, key: str) -> None:
    """Whatever is changed changes the recipe, the options or what is said, or is refused."""
    plain, changed = outcome(settings(checkout / file)), settings(checkout / file)
    changed.left[key] = another(changed.left[key])
    try:
        found = outcome(changed)
    except UserError:
        return
    assert changed.left == {}
    assert found != plain or key.endswith(REPORTED_ELSEWHERE), key


# ---------------------------------------------------------------- refused
@pytest.mark.parametrize(
    ("key", "value", "printed"),
    [
        ("model.type", "SimCLR", "the model SimCLR is not known here"),
        ("model.backbone.type", "HiViT", "the encoder HiViT is not known here"),
        ("model.backbone.arch", "giant", "arch is 'giant'"),
        ("optim_wrapper.optimizer.type", "Lion", "optimizer.type is 'Lion'"),
        ("optim_wrapper.constructor", "Own", "does not go with layer_decay_rate"),
        ("optim_wrapper.custom_keys.ln.decay_mult", 0.5, "decay_mult can only be 0"),
        ("param_scheduler.1.T_max", 20, "the cosine goes from 4 over 20 to 20"),
        ("param_scheduler.1.type", "StepLR", "type is 'StepLR'"),
        ("train_dataloader.dataset.pipeline.3.policies", "imagenet", "policies is 'imagenet'"),
        ("train_dataloader.dataset.pipeline.2.type", "Rotate", "the transform Rotate is not known here"),
        ("model.backbone.frozen_stages", 3, "all 12 are frozen, or none"),
        ("train_cfg.max_epoch", 5, "nothing reads train_cfg.max_epoch. Did you mean 'train_cfg.max_epochs'?"),
        ("optim_wrapper.optimizer.lrr", 1, "Did you mean 'optim_wrapper.optimizer.lr'?"),
    ],
)
def test_what_cannot_be_done_is_refused(checkout: Path, key: str, value: Any, printed: str) -> None:
    with pytest.raises(UserError, match=r"vit_4xb6\.py") as error:
        mmpretrain.read(checkout / "mae/tuned/vit_4xb6.py", {key: value})
    assert printed in str(error.value) and "\n" not in str(error.value)


def test_held_out_images_in_another_folder_are_not_passed_over(checkout: Path) -> None:
    file, key = checkout / "mae/tuned/vit_4xb6.py", "val_dataloader.dataset.data_root"
    assert mmpretrain.read(file, {key: "data/own/"}).options["--data"] == "data/own"
    with pytest.raises(UserError, match="the splits lie in different folders, data/own and /other: name one with"):
        mmpretrain.read(file, {key: "/other"})
    reading = mmpretrain.read(file, {key: "/other"}, given=["--data", "/mine"])
    assert "--data" not in reading.options
    assert f"{key} = /other: --data goes before it" in reading.notes


def test_bases_that_are_not_there_or_go_round_are_refused(tmp_path: Path) -> None:
    for text, printed in (
        ("_base_ = 'b.py'", "its base b.py is not there"),
        ("_base_ = 'a.py'", "is based on itself"),
        ("_base_ = f()", "has to be a list of files"),
        ("x = 1", "no model and train_dataloader"),
    ):
        (tmp_path / "a.py").write_text(text)
        with pytest.raises(UserError, match=printed):
            mmpretrain.read(tmp_path / "a.py")


# ---------------------------------------------------------------- through mmengine
def test_mmengine_reads_a_file_only_where_it_is_asked_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in of mmengine's Config hands over what it makes of a file, classes and all."""
    path = write(tmp_path) / "moco/moco_8xb6.py"
    read = mmpretrain.read(path, processes=2)

    class MoCoV3:
        """A class as files of the newer style name one."""

    class Config:
        """Executes nothing: it answers with what this suite's own reader found."""

        @classmethod
        def fromfile(cls, name: str) -> Config:
            assert name == str(path)
            return cls()

        def to_dict(self) -> dict[str, Any]:
            tree = mmpretrain.read_tree(path)
            return {**tree, "model": {**tree["model"], "type": MoCoV3}, "unused": open}

    monkeypatch.setitem(sys.modules, "mmengine", ModuleType("mmengine"))
    stand_in = ModuleType("mmengine.config")
    stand_in.Config = Config  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mmengine.config", stand_in)
    executed = mmpretrain.read(path, processes=2, executed=True)
    assert (executed.recipe, executed.options, executed.notes) == (read.recipe, read.options, read.notes)
    line = hand_over.taken(["--mmpretrain-config", str(path), "--mmengine"])
    found = hand_over.read("pretrain", line)
    assert found is not None and found[0].recipe.model == read.recipe.model

    def failing(name: str) -> None:
        raise ValueError(f"of {name}\nand more")

    monkeypatch.setattr(Config, "fromfile", failing)
    with pytest.raises(UserError, match=r"moco_8xb6\.py: mmengine cannot read it: ValueError: of .* and more$"):
        mmpretrain.read(path, executed=True)


def test_without_mmengine_the_word_names_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path) / "moco/moco_8xb6.py"
    monkeypatch.setitem(sys.modules, "mmengine.config", None)
    with pytest.raises(UserError, match="pip install mmengine, or leave --mmengine out"):
        mmpretrain.read(path, executed=True)
    with pytest.raises(UserError, match="--mmengine goes with --mmpretrain-config FILE"):
        hand_over.taken(["--mmengine", "tiny/moco_vit_tiny"])
    with pytest.raises(UserError, match="--mmengine is of mmpretrain"):
        hand_over.taken(["--libai-config", "a.py", "--mmengine"])


def test_sizes_may_be_four_numbers(tmp_path: Path) -> None:
    path = write(tmp_path) / "moco/moco_8xb6.py"
    arch = {"embed_dims": 48, "num_layers": 3, "num_heads": 4, "feedforward_channels": 96}
    changes = {"model.neck.in_channels": 48, **{f"model.backbone.arch.{name}": size for name, size in arch.items()}}
    s = Settings(path, {**flat(mmpretrain.read_tree(path)), **changes})
    del s.left["model.backbone.arch"]
    encoder = mmpretrain.model(s)[1]
    assert isinstance(encoder, ViT)
    assert (encoder.width, encoder.depth, encoder.heads, encoder.mlp_ratio) == (48, 3, 4, 2.0)


def test_a_model_in_place_of_its_bases_is_refused_as_mmengine_would(tmp_path: Path) -> None:
    (tmp_path / "part_8xb4.py").write_text(
        "model = dict(backbone=dict(arch='l'))\ntrain_dataloader = dict(batch_size=4)"
    )
    with pytest.raises(UserError, match=r"the model has no type: .* write model\.update\(\.\.\.\), or"):
        mmpretrain.read(tmp_path / "part_8xb4.py")
