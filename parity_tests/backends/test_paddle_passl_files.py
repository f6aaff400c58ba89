"""PASSL's files of MoCo v3, and those of its older format, of this test's own numbers: field by field."""

from __future__ import annotations

import subprocess
import sys

import pytest
from PIL import Image

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
    RandAugment,
    RandomErasing,
    RandomResizedCrop,
    ScheduleSpec,
    Solarize,
)
from triport.core.spec.foreign import passl
from triport.parity_tests.backends.test_paddle_passl_config import written

pytestmark = pytest.mark.inside
GLOBAL = (
    "Global: {checkpoint: null, pretrained_model: P, output_dir: o, device: cpu, epochs: 30, seed: 4, accum_steps: 1}"
)
VIEW = """
- RandomResizedCrop: {size: 224, scale: [0.1, 0.9], interpolation: bicubic}
- ColorJitter: {p: 0.7, brightness: 0.4, contrast: 0.3, saturation: 0.2, hue: 0.1}
- RandomGrayscale: {p: 0.15}
- SimCLRGaussianBlur: {p: 0.9, sigma: [.2, 1.5]}
- BYOLSolarize: {p: 0.3}
- RandomHorizontalFlip:
- ToTensor:
- Normalize: {mean: [0.5, 0.4, 0.3], std: [0.2, 0.2, 0.1]}
"""
MOCO = f"""
{GLOBAL}
FP16: {{level: O1}}
Model: {{name: mocov3_vit_base_pretrain}}
LRScheduler: {{name: TimmCosine, learning_rate: 0.002, eta_min: 0.0001, warmup_epoch: 4, warmup_start_lr: 1e-6,
  decay_unit: step, warmup_prefix: True}}
Optimizer: {{name: AdamW, betas: "(0.8, 0.99)", eps: 1e-7, weight_decay: 0.2}}
DataLoader:
  Train:
    dataset:
      name: ImageFolder
      root: ./d/train
      transform:
      - TwoViewsTransform:
          base_transform1: {VIEW.replace(chr(10), chr(10) + " " * 10)}
          base_transform2: {VIEW.replace(chr(10), chr(10) + " " * 10)}
    sampler: {{name: DistributedBatchSampler, batch_size: 16, drop_last: False, shuffle: True}}
    loader: {{num_workers: 3}}
"""
SPLIT = """
    dataset: {name: ImageFolder, root: ./d/SPLIT, transform: [RandomResizedCrop: {size: 224},
      RandomHorizontalFlip: {p: 0.4}, ToTensor: null, Normalize: {mean: [0.5, 0.4, 0.3], std: [0.2, 0.2, 0.1]}]}
    sampler: {batch_size: 8, shuffle: True}
"""
STORED = SPLIT.replace("SPLIT", "val").replace("RandomHorizontalFlip: {p: 0.4},", "")
STORED = STORED.replace("RandomResizedCrop: {size: 224}", "Resize: {size: 256}, CenterCrop: {size: 224}")
PROBE = f"""
{GLOBAL}
Model: {{name: mocov3_vit_base_linearprobe, class_num: 9}}
Loss: {{Train: [CELoss: {{weight: 1.0}}], Eval: [CELoss: {{weight: 1.0}}]}}
LRScheduler: {{name: TimmCosine, learning_rate: 11.0, decay_unit: epoch, last_epoch: 0, warmup_epoch: 0}}
Optimizer: {{name: Momentum, momentum: 0.85, weight_decay: 0.0}}
DataLoader:
  Train: {SPLIT.replace("SPLIT", "train")}
  Eval: {STORED}
"""
OLD = """
epochs: 20
output_dir: o
seed: 3
device: cpu
model: {name: NAME, architecture: {name: X, img_size: 32, patch_size: 8, embed_dim: 48, depth: 3, num_heads: 4,
  mlp_ratio: 2, qkv_bias: True, MORE}}
dataloader:
  train:
    loader: {num_workers: 2}
    sampler: {name: SAMPLER, batch_size: 4, shuffle: true, drop_last: true}
    dataset:
      name: ImageNet
      dataroot: d/train/
      transforms:
      - {name: ToRGB, return_type: numpy}
      - {name: RandomResizedCrop, size: 32, scale: [0.3, 1.0], ratio: [1.0, 1.0], interpolation: bicubic}
      - {name: RandomHorizontalFlip}
      - {name: AutoAugment, config_str: rand-m8-mstd0.4-inc1, interpolation: bicubic, img_size: 32}
      - {name: Normalize, data_format: HWC, mean: [127.5, 102.0, 51.0], std: [51.0, 51.0, 25.5]}
      - {name: Transpose}
      - {name: RandomErasing, prob: 0.2, mode: pixel, max_count: 1}
      MIX
SCHEDULE
optimizer: {name: AdamW, beta1: 0.8, beta2: 0.99, weight_decay: 0.07,
  exclude_from_weight_decay: [cls_token, pos_embed, .bias, norm]}
log_config: {name: LogHook, interval: 10}
"""
MIX = """batch_transforms:
      - {name: Mixup, mixup_alpha: 0.6, prob: 0.9, switch_prob: 0.25, mode: batch, cutmix_alpha: 0.8,
         label_smoothing: 0.1, num_classes: 5}"""
TIMM = "lr_scheduler: {name: TimmCosine, learning_rate: 1e-3, eta_min: 1e-5, warmup_epoch: 5, T_max: 20}\n"
TIMM += "lr_config: {name: LRSchedulerHook, unit: epoch}"
WARM = "lr_scheduler: {name: LinearWarmup, warmup_steps: 4, start_lr: 1e-6, end_lr: 0.001, learning_rate: "
WARM += "{name: CosineAnnealingDecay, learning_rate: 1e-3, T_max: 20, eta_min: 1e-5}}"


def read(folder, text, **more):
    path = folder / "own.yaml"
    path.write_text(text)
    return passl.read(path, **more)


def old(name, more, schedule=TIMM, mix="", sampler="Distributed"):
    text = OLD.replace("NAME", name).replace("MORE", more).replace("SCHEDULE", schedule).replace("SAMPLER", sampler)
    return text.replace("      MIX\n", f"      {mix}\n" if mix else "")


def test_pretraining_of_moco_field_by_field(tmp_path):
    reading = read(tmp_path, MOCO, processes=4)
    one = reading.recipe
    assert one.model.objective == MoCo(temperature=0.2, momentum=0.99, hidden=4096, dim=256) and one.task == "pretrain"
    assert (one.model.encoder.width, one.model.encoder.frozen_patch, one.batch, one.seed) == (768, True, 64, 4)
    view = (
        RandomResizedCrop(min_area=0.1, max_area=0.9, interpolation="bicubic"),
        ColorJitter(p=0.7, brightness=0.4, contrast=0.3, saturation=0.2, hue=0.1),
        Grayscale(p=0.15),
        GaussianBlur(p=0.9, min_sigma=0.2, max_sigma=1.5),
        Solarize(p=0.3),
        HorizontalFlip(p=0.5),
    )
    assert one.train.views == (view, view) and one.train.mean == (0.5, 0.4, 0.3) and one.train.std == (0.2, 0.2, 0.1)
    rule = one.optimizer
    assert (rule.lr, rule.lr_batch, rule.weight_decay, rule.decays, rule.betas) == (0.002, 64, 0.2, "all", (0.8, 0.99))
    assert one.schedule == ScheduleSpec(epochs=30, warmup_epochs=4, min_lr=0.0001, warmup_lr=1e-6)
    assert reading.beside["level"] == "O1" and "--weights" not in reading.options
    assert any("Global.pretrained_model = P: pretraining begins with random weights" in note for note in reading.notes)


def test_passls_first_name_of_moco_is_the_same_model(tmp_path):
    first = MOCO.replace("mocov3_vit_base_pretrain", "mocov3_pretrain_vit_base")
    ours, theirs = read(tmp_path, MOCO, processes=4), read(tmp_path, first, processes=4)
    assert theirs.recipe == ours.recipe and "--weights" not in theirs.options
    assert any("Global.pretrained_model = P: pretraining begins with random weights" in note for note in theirs.notes)


def test_a_probe_field_by_field(tmp_path):
    reading = read(tmp_path, PROBE, processes=2)
    one = reading.recipe
    head = Classifier(classes=9, pooling="token", head_std=0.01, frozen_encoder=True)
    assert one.task == "linear" and one.model.objective == head and one.batch == 16
    assert (one.optimizer.kind, one.optimizer.lr, one.optimizer.momentum) == ("sgd", 11.0, 0.85)
    assert (one.schedule.per, one.schedule.warmup_epochs) == ("epoch", 0) and reading.options["--weights"] == "P"
    for given in (["--weights", "W"], ["--from-scratch"]):  # both go before the file's
        again = passl.read(tmp_path / "own.yaml", given=given)
        assert "--weights" not in again.options and any("goes before it" in note for note in again.notes)


def test_biases_may_decay(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("[cls_token, pos_embed, norm, bias]", "[cls_token, pos_embed, norm]"))
    assert passl.read(path).recipe.optimizer.decays == "all_but_norms_and_tokens"


def test_the_older_format_of_deit_field_by_field(tmp_path):
    text = old(
        "DeiTWrapper", "class_num: 5, drop_path_rate: 0.2, epsilon: 1e-6", TIMM, MIX, "DistributedRepeatedAugSampler"
    )
    one = read(tmp_path, text, processes=2).recipe
    encoder = one.model.encoder
    assert (encoder.width, encoder.depth, encoder.heads, encoder.patch, encoder.mlp_ratio) == (48, 3, 4, (8, 8), 2)
    assert encoder.drop_path == 0.2 and one.model.objective.classes == 5 and one.data.repeats == 3 and one.batch == 8
    crop = RandomResizedCrop(min_area=0.3, ratio=(1.0, 1.0), interpolation="bicubic", size=(32, 32))
    rand = RandAugment(magnitude=8.0, deviation=0.4)
    assert one.train.views == ((crop, HorizontalFlip(), rand, RandomErasing(p=0.2)),)
    assert one.train.mean == (0.5, 0.4, 0.2) and one.train.std == (0.2, 0.2, 0.1)
    assert one.mix is not None and one.mix.switch == pytest.approx(0.25)
    mix = MixSpec(mixup=0.6, cutmix=0.8, probability=0.9, switch=one.mix.switch, smoothing=0.1)
    assert one.mix == mix and one.optimizer.decays == "matrices_but_tokens" and one.optimizer.betas == (0.8, 0.99)
    schedule = ScheduleSpec(epochs=20, warmup_epochs=5, min_lr=1e-5, per="epoch", cosine="whole")
    assert one.schedule == schedule and one.optimizer.lr == 1e-3


def test_the_older_format_of_mae_field_by_field(tmp_path):
    more = "decoder_embed_dim: 24, decoder_depth: 1, decoder_num_heads: 2, norm_pix_loss: True"
    reading = read(tmp_path, old("MAE_PRETRAIN", more, WARM))
    masked = MAE(normalised_pixels=True, decoder_width=24, decoder_depth=1, decoder_heads=2)
    assert reading.recipe.task == "pretrain" and reading.recipe.model.objective == masked
    schedule = ScheduleSpec(epochs=20, warmup_epochs=4, min_lr=1e-5, warmup_lr=1e-6, per="epoch")
    assert reading.recipe.schedule == schedule
    assert any("are taken as epochs" in note for note in reading.notes)
    tuned = read(tmp_path, old("MAE_FINETUNE", "class_num: 5", WARM)).recipe
    assert tuned.task == "finetune" and tuned.model.objective.pooling == "mean"


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        (
            old("SwinWrapper", ""),
            "the model SwinWrapper (PASSL's older format) is not known here: triport has MoCo v3",
        ),
        (PROBE.replace("mocov3_vit_base_linearprobe", "dino_vit_base16_linearprobe"), "triport has MoCo v3 and MAE"),
        (PROBE.replace("mocov3_vit_base_linearprobe", "ViT_base_patch16_224"), "the model ViT_base_patch16_224 is not"),
        (old("MAE_PRETRAIN", "", WARM.replace("T_max: 20", "T_max: 30")), "T_max is not the number of epochs"),
    ],
)
def test_other_models_are_refused_by_their_names(tmp_path, text, printed):
    with pytest.raises(UserError, match=r"own\.yaml") as error:
        read(tmp_path, text)
    assert printed in str(error.value) and "\n" not in str(error.value)


def run(folder, task, *words):
    """Run an entry point of Paddle's backend on a tiny model; returns what it says."""
    sizes = "image=16 model.encoder.patch=8 model.encoder.width=16 model.encoder.depth=2 model.encoder.heads=2"
    command = [sys.executable, "-m", f"triport.backends.paddle.{task}", *words, *sizes.split(), "--workers", "0"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_files_are_run_on_every_entry_point_and_their_weights_yield(tmp_path):
    """Pretraining, a probe, fine-tuning and evaluation of two steps each, the weights of the file being elsewhere."""
    for split, kind, number in ((s, k, n) for s in ("train", "val") for k in "ab" for n in range(4)):
        path = tmp_path / "d" / split / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (30 * number, 90 * "ab".index(kind), 9)).save(path)
    (tmp_path / "moco.yaml").write_text(MOCO)
    (tmp_path / "probe.yaml").write_text(PROBE.replace("pretrained_model: P", "pretrained_model: elsewhere"))
    tuned = written(tmp_path, data="./d", weights="elsewhere", device="cpu").name
    few = ["batch=4", "--stop-after-steps", "2"]
    small = ["model.objective.hidden=8", "model.objective.dim=4"]
    run(tmp_path, "pretrain", "--passl-config", "moco.yaml", "-o", "Global.epochs=6", *few, *small, "--out", "m")
    two = ["model.objective.classes=2"]
    printed = run(tmp_path, "linear", "--passl-config", "probe.yaml", *few, *two, "--weights", "m", "--out", "p")
    assert "Global.pretrained_model = elsewhere: --weights or --from-scratch goes before it" in printed
    printed = run(tmp_path, "finetune", "--passl-config", tuned, *few, *two, "--from-scratch", "--out", "f")
    assert "Global.pretrained_model = elsewhere: --weights or --from-scratch goes before it" in printed
    for name, file in (("f", tuned), ("p", "probe.yaml")):
        printed = run(tmp_path, "evaluate", "--passl-config", file, *two, "--weights", name)
        assert "top1" in printed and "of 8 right" in printed
