"""PASSL's YAML files of DeiT fine-tuning as recipes: every setting is taken over, refused or named."""

from __future__ import annotations

import numpy as np
import pytest

from triport.core.errors import UserError
from triport.core.model import schedule
from triport.core.spec import recipe as recipes
from triport.core.spec import schema

pytest.importorskip("paddle", reason="Paddle is not in this interpreter: run this in .venvs/paddle")

import yaml

from triport.backends.paddle import distributed, finetune, learner, pretrain
from triport.backends.paddle.passl import config as passl_config
from triport.backends.paddle.passl import learner as passl_learner
from triport.core.backend.probe import recipe_around
from triport.core.spec import OptimizerSpec
from triport.core.spec.foreign import passl
from triport.core.spec.foreign.passl import recipe
from triport.core.spec.foreign.passl import settings as read
from triport.core.spec.foreign.passl_training import options as run_options
from triport.core.spec.foreign.settings import flat, literal
from triport.parity_tests.tool import small

SGD = OptimizerSpec(kind="sgd", lr=1.0, weight_decay=0.01, decays="all", momentum=0.9)

pytestmark = pytest.mark.inside

# What PASSL's file of DeiT-B fine-tuning sets, name by name; what the tests change stands in braces.
CONFIG = """
Global: {{task_type: classification, train_loop: ClassificationTrainingEpochLoop, validate_loop:
  ClassificationEvaluationLoop, checkpoint: null, pretrained_model: {weights}, output_dir: {out}, device: {device},
  save_interval: 1, max_num_latest_checkpoint: 0, eval_during_train: True, eval_interval: 1, eval_unit: "epoch",
  accum_steps: 1, epochs: 150, print_batch_step: 10, use_visualdl: False, seed: 2022}}
FP16: {{level: O1, GradScaler: {{init_loss_scaling: 65536.0}}}}
DistributedStrategy: {{data_parallel: True}}
Model: {{name: DeiT_base_patch16_224, drop_path_rate: 0.1, drop_rate: 0.0, class_num: 1000}}
Loss:
  Train: [CELoss: {{weight: 1.0}}]
  Eval: [CELoss: {{weight: 1.0}}]
LRScheduler: {{name: TimmCosine, learning_rate: 1e-3, eta_min: 1e-5, warmup_epoch: 5, warmup_start_lr: 1e-6,
  decay_unit: epoch}}
Optimizer: {{name: AdamW, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.05, no_weight_decay_name:
  [cls_token, pos_embed, norm, bias], use_master_param: True, exp_avg_force_fp32: True}}
DataLoader:
  Train:
    dataset:
      name: ImageFolder
      root: {data}/train
      transform:
      - RandomResizedCrop: {{size: 224, interpolation: bicubic}}
      - RandomHorizontalFlip:
      - TimmAutoAugment: {{config_str: rand-m9-mstd0.5-inc1, interpolation: bicubic, img_size: 224,
          mean: [0.485, 0.456, 0.406]}}
      - NormalizeImage: {{scale: 1.0/255.0, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], order: ''}}
      - RandomErasing: {{EPSILON: 0.25, sl: 0.02, sh: 1.0/3.0, r1: 0.3, attempt: 10, use_log_aspect: True, mode: pixel}}
      - ToCHWImage:
      batch_transform:
      - TransformOpSampler:
          Mixup: {{alpha: 0.8, prob: 0.5, epsilon: 0.1, class_num: 1000}}
          Cutmix: {{alpha: 1.0, prob: 0.5, epsilon: 0.1, class_num: 1000}}
    sampler: {{name: RepeatedAugSampler, batch_size: 128, drop_last: False, shuffle: True}}
    loader: {{num_workers: 8, use_shared_memory: True}}
  Eval:
    dataset:
      name: ImageFolder
      root: {data}/val
      transform:
      - Resize: {{size: 256, interpolation: bicubic, backend: pil}}
      - CenterCrop: {{size: 224}}
      - NormalizeImage: {{scale: 1.0/255.0, mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], order: ''}}
      - ToCHWImage:
    sampler: {{name: DistributedBatchSampler, batch_size: 256, drop_last: False, shuffle: False}}
    loader: {{num_workers: 8, use_shared_memory: True}}
Metric: {{Eval: [TopkAcc: {{topk: [1, 5]}}]}}
Export: {{export_type: paddle, input_shape: [None, 3, 224, 224]}}
"""


def written(folder, **changes):
    values = {"out": "./output/", "weights": "null", "device": "gpu", "data": "./dataset/ILSVRC2012", **changes}
    path = folder / "DeiT_base.yaml"
    path.write_text(CONFIG.format(**values).replace("betas: (0.9, 0.999)", 'betas: "(0.9, 0.999)"'))
    return path


def understood(settings):
    """All that comes of the settings: recipe, options, FP16, what is said."""
    reading = passl.reading(settings, processes=8)
    return schema.plain(reading.recipe), reading.words(), reading.beside, list(reading.notes)


def words(settings, given=()):
    """The options that the settings stand for."""
    found = run_options(settings, "DeiT_base_patch16_224", given)
    return [word for key, value in found.items() if key not in given for word in (key, str(value))]


def nameless(made):
    return {key: value for key, value in made.items() if key not in ("name", "title", "source", "reported")}


SHIPPED = nameless(schema.plain(recipes.load("transfer/passl_deit_base_finetune")))


def test_the_file_is_the_recipe_that_is_shipped(tmp_path):
    made, options, beside, _ = understood(read(written(tmp_path), []))
    assert nameless(made) == SHIPPED and beside == {"level": "O1", "first_scale": 65536.0}
    wanted = "--data dataset/ILSVRC2012 --out output/DeiT_base_patch16_224 --device gpu --workers 8"
    assert options == wanted.split()


def test_the_learning_rates_are_those_of_passl(tmp_path):
    """Warm-up and cosine over whole epochs, the first epoch at the first value (recipes 5.7)."""
    made = recipe(read(written(tmp_path), []), processes=8)
    for step in (0, 1, 3, 9, 10, 11, 160, 299):
        epoch = step // 2
        warm = (1e-3 - 1e-6) * epoch / 5 + 1e-6
        cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + np.cos(np.pi * epoch / 150))
        assert schedule.at(made, step, steps_per_epoch=2).lr == pytest.approx(warm if epoch < 5 else cosine, rel=1e-12)


def test_later_files_say_the_same_otherwise(tmp_path):
    """PASSL's last version has num_classes, Global.finetune and a path of weights."""
    path = written(tmp_path, weights="./pretrained/mocov3")
    path.write_text(path.read_text().replace(" class_num: 1000}\nLoss", " num_classes: 1000}\nLoss"))
    made, options, _, remarks = understood(read(path, ["Global.finetune=True"]))
    assert nameless(made) == SHIPPED and "Global.finetune = True: this is fine-tuning" in remarks
    assert options[2:4] == ["--weights", "./pretrained/mocov3"]


OLD = {
    "RandomResizedCrop: {size: 224, interpolation: bicubic}": "RandCropImage: {size: 224, interpolation: bicubic, "
    "backend: pil}",
    "RandomHorizontalFlip:": "RandFlipImage: {flip_code: 1}",
    "Resize: {size: 256,": "ResizeImage: {resize_short: 256,",
    "CenterCrop:": "CenterCropImage:",
    " transform:\n": " transform_ops:\n      - DecodeImage: {to_rgb: True, channel_first: False}\n",
    "batch_transform:": "batch_transform_ops:",
    "name: ImageFolder": "name: ImageNetDataset",
    "root: ./dataset/ILSVRC2012/train": "image_root: ./dataset/ILSVRC2012/\n      cls_label_path: ./train_list.txt",
    "root: ./dataset/ILSVRC2012/val": "image_root: ./dataset/ILSVRC2012/\n      cls_label_path: ./val_list.txt",
}


def test_files_of_training_from_scratch_are_read_too(tmp_path):
    """PASSL's other DeiT files have older names for transforms, a list of images, and level O2."""
    path = written(tmp_path)
    text = path.read_text().replace("level: O1", "level: O2")
    for new, old in OLD.items():
        assert new in text, new
        text = text.replace(new, old)
    path.write_text(text)
    made, options, _, remarks = understood(read(path, []))
    assert nameless(made) == SHIPPED and options[:2] == ["--data", "dataset/ILSVRC2012"]
    reported = "\n".join(remarks)
    assert "cls_label_path = ./train_list.txt: the folders in train are the classes" in reported
    assert reported.count("RandCropImage: done as RandomResizedCrop, which draws area and shape otherwise") == 1


def test_overrides_and_options(tmp_path):
    changes = "Global.epochs=30 Global.accum_steps=4 Optimizer.betas=(0.9,0.95) Global.device=cpu"
    settings = read(written(tmp_path, weights="moco_vit_base"), changes.split())
    options = words(settings, ["--out"])
    wanted = "--data dataset/ILSVRC2012 --weights moco_vit_base --device cpu --workers 8 --accumulate 4"
    assert options == wanted.split()
    made = recipe(settings, processes=2)
    assert (made.schedule.epochs, made.batch, made.optimizer.betas) == (30, 256, (0.9, 0.95))


def test_the_splits_need_one_parent_or_data(tmp_path):
    for key, root in (("Train", "/a/training"), ("Eval", "/b/val")):
        settings = read(written(tmp_path), [f"DataLoader.{key}.dataset.root={root}"])
        assert "--data" not in words(settings, ["--data", "/c"])
        settings.forget_all(passl.ELSEWHERE)
        assert f"DataLoader.{key}.dataset.root = {root}: --data goes before it" in settings.remarks
        settings = read(written(tmp_path), [f"DataLoader.{key}.dataset.root={root}"])
        with pytest.raises(UserError, match="--data"):
            words(settings, [])


def test_a_transform_without_settings_may_stand_alone(tmp_path):
    path = written(tmp_path)
    text = path.read_text().replace("- RandomHorizontalFlip:\n", "- RandomHorizontalFlip\n")
    path.write_text(text.replace("- ToCHWImage:\n", "- ToCHWImage: {}\n"))
    assert nameless(understood(read(path, []))[0]) == SHIPPED
    path.write_text(text.replace("- CenterCrop:", "- Resize: {size: 3}\n        CenterCrop:"))
    with pytest.raises(UserError, match="has to be one transform"):
        understood(read(path, []))


def test_clipping_needs_no_name(tmp_path):
    path = written(tmp_path)
    path.write_text(path.read_text().replace("Optimizer: {", "Optimizer: {grad_clip: {clip_norm: 1.5}, "))
    assert recipe(read(path, []), processes=8).optimizer.clip_norm == 1.5


def test_weights_are_named_without_their_ending(tmp_path):
    (tmp_path / "moco.pdparams").touch()
    options = words(read(written(tmp_path, weights=tmp_path / "moco"), []), [])
    assert options[options.index("--weights") + 1] == str(tmp_path / "moco.pdparams")


# ---------------------------------------------------------------- nothing is dropped
PLAIN = "DataLoader.{}.dataset.transform.{}"
BARE = {  # stand in the file without a value
    PLAIN.format("Train", "1.RandomHorizontalFlip"),
    PLAIN.format("Train", "5.ToCHWImage"),
    PLAIN.format("Eval", "3.ToCHWImage"),
}
TEXT = CONFIG.format(out="o", weights="null", device="gpu", data="d").replace("(0.9, 0.999)", "'(0.9, 0.999)'")
LEAVES = sorted(set(flat(yaml.safe_load(TEXT))) - BARE)


def another(value):
    value = literal(value)
    if isinstance(value, bool) or value is None:
        return "x" if value is None else not value
    if isinstance(value, (int, float)):
        return value + 1 if isinstance(value, int) else value / 2 or 0.5
    return value[:-1] if isinstance(value, (list, tuple)) else f"{value}x"


@pytest.mark.parametrize("key", LEAVES)
def test_no_setting_is_dropped_silently(tmp_path, key):
    """Whatever is changed changes the recipe, the options or what is said, or is refused."""
    path = written(tmp_path)
    plain = understood(read(path, []))
    settings = read(path, [])
    settings.left[key] = another(settings.left[key])
    try:
        changed = understood(settings)
    except (UserError, ValueError) as error:
        assert isinstance(error, UserError), f"{key}: {error!r}"
        return
    assert settings.left == {} and changed != plain


def test_settings_that_nobody_knows_are_named(tmp_path):
    *_, remarks = understood(read(written(tmp_path), ["Global.surprise=7"]))
    assert "Global.surprise = 7: not known here, without effect" in remarks
    reported = "\n".join(remarks)
    assert "Global.print_batch_step = 10" in reported and "Export.export_type = paddle" in reported


def test_a_slip_in_the_name_of_a_setting_is_refused(tmp_path):
    """In the file where it stands for one that is missing, on the command line also beside the right one."""
    path = written(tmp_path)
    for word, key, near in (
        ("Global.epoch=3", "Global.epoch", "Global.epochs"),
        ("Optimizer.beta=0.9", "Optimizer.beta", "Optimizer.betas"),
    ):
        with pytest.raises(UserError) as error:
            passl.read(path, [word])
        assert str(error.value) == f"-o {word}: {path}: nothing reads {key}. Did you mean '{near}'?"
    text = path.read_text()
    slip = text.replace("drop_path_rate", "drop_path_rat")
    assert slip != text
    path.write_text(slip)
    with pytest.raises(UserError, match=r"nothing reads Model.drop_path_rat. Did you mean 'Model.drop_path_rate'\?"):
        passl.read(path)


def test_a_precision_that_is_given_goes_before_the_files(tmp_path, monkeypatch, capsys):
    reading = passl.read(written(tmp_path))
    assert passl_config.half(reading, ["--device", "gpu"]) is learner.make
    assert "FP16.level = O1: Paddle computes in float32 on CPUs" in capsys.readouterr().out
    monkeypatch.setattr(passl_config.paddle, "is_compiled_with_cuda", lambda: True)
    assert passl_config.half(reading, ["--device", "gpu"]) is passl_learner.make
    assert "FP16.level = O1: float16 with loss scaling" in capsys.readouterr().out
    assert passl_config.half(reading, ["--precision=bfloat16"]) is learner.make
    assert "FP16.level = O1: --precision goes before it" in capsys.readouterr().out
    assert passl_config.half(None, []) is learner.make and capsys.readouterr().out == ""


def test_level_o2_reaches_the_context_of_the_forward_pass(tmp_path, monkeypatch):
    """What this machine can see of it: how the learner is made where there is a GPU, and what it would open."""
    spec = small.MODELS["mae"]
    monkeypatch.setattr(passl_config.paddle, "is_compiled_with_cuda", lambda: True)
    reading = passl.read(written(tmp_path))
    reading.beside["level"] = "O2"
    make, given = passl_config.half(reading, ["--device", "gpu"]), {}
    monkeypatch.setattr(learner, "make", lambda *_, **named: given.update(named))
    make(None, None, processes=None, precision="float32")
    assert (given["precision"], given["amp_o2"]) == ("float16", True)
    for asked, level in ((False, "O1"), (True, "O2")):
        opened: list[dict] = []
        monkeypatch.setattr(learner.paddle.amp, "auto_cast", lambda seen=opened, **named: seen.append(named))
        made = object.__new__(learner.Learner)
        with pytest.raises(UserError, match="no float16 on CPUs"):  # the model is not built on this machine ...
            learner.Learner.__init__(
                made, recipe_around(spec, SGD), {}, distributed.start("cpu"), "float16", amp_o2=asked
            )
        made.autocast()  # ... but what was asked for is known by then
        assert opened == [{"enable": True, "dtype": "float16", "level": level}]


# ---------------------------------------------------------------- refused
TRANSFORM = "DataLoader.Train.dataset.transform"
SAMPLER = "DataLoader.Train.dataset.batch_transform.0.TransformOpSampler"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Model.drop_rate=0.1", "Model.drop_rate is 0.1; here it can only be 0.0"),
        ("Model.name=SwinTransformer", "the model SwinTransformer is not known here"),
        ("LRScheduler.name=Poly", "LRScheduler.name is 'Poly'; here it can only be 'TimmCosine'"),
        ("LRScheduler.learning_rate=fast", "LRScheduler.learning_rate is 'fast', which is not a number"),
        ("Global.epochs=3", "warm-up takes 5 of 3 epochs: shorten it, -o LRScheduler.warmup_epoch=0.3"),
        ("Optimizer.name=Adafactor", "Optimizer.name is 'Adafactor'"),
        ("Optimizer.betas=0.9", "Optimizer.betas is 0.9"),
        ("Optimizer.no_weight_decay_name=['head']", "no_weight_decay_name can be"),
        ("DataLoader.Train.dataset.name=LMDB", "the dataset LMDB is not known here"),
        (f"{TRANSFORM}.2.TimmAutoAugment.config_str=original", "rand-m9-mstd0.5-inc1"),
        (f"{TRANSFORM}.3.NormalizeImage.mean=0.5", "NormalizeImage.mean is 0.5"),
        (f"{TRANSFORM}.4.RandomErasing.mode=const", "RandomErasing.mode is 'const'"),
        ("DataLoader.Train.sampler.name=Other", "the sampler Other is not known here"),
        (f"{SAMPLER}.Mixup.epsilon=0.2", "different epsilon"),
        (f"{SAMPLER}.Mixup.prob=0.6", "add up to 1.1"),
        (f"{SAMPLER}.Mixup.class_num=10", "Mixup.class_num is 10; here it can only be 1000"),
        ("FP16.level=O3", "FP16.level O3 is not known here"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, override, message):
    with pytest.raises(UserError, match=r"DeiT_base\.yaml") as error:
        understood(read(written(tmp_path), [override]))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Globl.epochs=1", "has no 'Globl.epochs'. Did you mean 'Global.epochs'?"),
        ("Global.epochs", "write one key=value"),
        ("Global.seed=a=b", "write one key=value"),
    ],
)
def test_bad_overrides_are_refused(tmp_path, override, message):
    with pytest.raises(UserError) as error:
        read(written(tmp_path), [override])
    assert message in str(error.value)


@pytest.mark.parametrize("text", ["", "a: [", "just words", "!!python/object/apply:os.getcwd []", "a: 1"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=r"x\.yaml"):
        read(tmp_path / "x.yaml", [])


def test_trees_become_tables():
    assert flat({"a": {"b": [1, 2], "c": [{"d": None}]}, "e": {}}) == {"a.b": [1, 2], "a.c.0.d": None, "e": {}}


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (finetune, ["--passl-config", "absent.yaml"]),
        (finetune, ["--passl-config"]),
        (finetune, ["-o", "Global.epochs=1"]),
        (finetune, ["--passl-config", "DeiT_base.yaml", "-o", "Model.drop_rate=0.5"]),
        (finetune, ["--passl-config", "DeiT_base.yaml", "-o", "Model.drop_path_rate=2"]),
        (finetune, ["--passl-config", "DeiT_base.yaml", "--surprise"]),
        (pretrain, ["tiny/test_moco_vit", "--export", "pth"]),
        (pretrain, ["tiny/test_moco_vit", "--export"]),
    ],
)
def test_mistakes_are_one_line(tmp_path, monkeypatch, capsys, entry, words):
    written(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert entry.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("triport: error: ") and error.count("\n") == 1 and ".toml" not in error
