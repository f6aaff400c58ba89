"""PASSL beside this project: its YAML files, its checkpoint files, and the way from pretraining to fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from core import checkpoint, schema
from core import recipe as recipes
from core.errors import UserError
from core.inventory import inventory
from core.spec import ModelSpec
from parity_tests import small
from parity_tests.questions import batch
from parity_tests.test_backend_runs import losses
from weights.command import main as weights
from weights.convert import convert

pytest.importorskip("paddle", reason="Paddle is not in this interpreter: run this in .venvs/paddle")

from backends.paddle import distributed, finetune, passl_config, passl_export, passl_learner, pretrain, probe
from backends.paddle.learner import Learner
from backends.paddle.passl_settings import flat, read
from backends.paddle.quiet import paddle

# What PASSL's file of DeiT-B fine-tuning says (recipes 5.7), in its form; SIZE and the like are set by the tests.
CONFIG = """
Global: {{task_type: classification, train_loop: ClassificationTrainingEpochLoop, checkpoint: null, output_dir: {out},
  pretrained_model: {weights}, device: {device}, save_interval: 1, eval_during_train: True, eval_interval: 1,
  eval_unit: "epoch", accum_steps: 1, epochs: 150, print_batch_step: 10, use_visualdl: False, seed: 2022}}
FP16: {{level: O1, GradScaler: {{init_loss_scaling: 65536.0}}}}
DistributedStrategy: {{data_parallel: True}}
Model: {{name: DeiT_base_patch16_224, drop_path_rate: 0.1, drop_rate: 0.0, class_num: 1000}}
Loss:
  Train: [CELoss: {{weight: 1.0}}]
  Eval: [CELoss: {{weight: 1.0}}]
LRScheduler: {{name: TimmCosine, learning_rate: 1e-3, eta_min: 1e-5, warmup_epoch: 5, warmup_start_lr: 1e-6,
  decay_unit: epoch}}
Optimizer: {{name: AdamW, betas: "(0.9, 0.999)", eps: 1e-8, weight_decay: 0.05, use_master_param: True,
  no_weight_decay_name: [cls_token, pos_embed, norm, bias], exp_avg_force_fp32: True}}
DataLoader:
  Train:
    dataset:
      name: ImageFolder
      root: {data}/train
      transform:
      - RandomResizedCrop: {{size: 224, interpolation: bicubic}}
      - RandomHorizontalFlip:
      - TimmAutoAugment: {{config_str: rand-m9-mstd0.5-inc1, interpolation: bicubic, img_size: 224}}
      - NormalizeImage: {{scale: 1.0/255.0, order: '', mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
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
      - NormalizeImage: {{scale: 1.0/255.0, order: '', mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}
      - ToCHWImage:
    sampler: {{name: DistributedBatchSampler, batch_size: 256, drop_last: False, shuffle: False}}
Metric: {{Eval: [TopkAcc: {{topk: [1, 5]}}]}}
Export: {{export_type: paddle, input_shape: [None, 3, 224, 224]}}
"""


def written(folder, **changes):
    values = {"out": "./output/", "weights": "null", "device": "gpu", "data": "./dataset/ILSVRC2012", **changes}
    path = folder / "DeiT_base.yaml"
    path.write_text(CONFIG.format(**values))
    return path


# ---------------------------------------------------------------- YAML
def test_the_file_is_the_recipe_that_is_shipped(tmp_path):
    ours = schema.plain(recipes.load("transfer/passl_deit_base_finetune"))
    theirs = schema.plain(passl_config.recipe(read(written(tmp_path), []), processes=8))
    for name in ("name", "title", "source", "reported"):
        ours.pop(name), theirs.pop(name)
    assert theirs == ours


def test_overrides_and_options(tmp_path):
    overrides = ["Global.epochs=3", "Global.accum_steps=4", "Optimizer.betas=(0.9,0.95)", "Global.device=cpu"]
    settings = read(written(tmp_path, weights="moco_vit_base"), overrides)
    (tmp_path / "moco_vit_base.pdparams").touch()
    options = passl_config.words(settings, ["--out", "here"])
    wanted = "--data dataset/ILSVRC2012 --weights moco_vit_base --device cpu --workers 8 --accumulate 4"
    assert options == wanted.split()
    made = passl_config.recipe(settings, processes=2)
    assert (made.schedule.epochs, made.batch, made.optimizer.betas) == (3, 256, (0.9, 0.95))


def test_weights_are_named_without_their_ending(tmp_path):
    (tmp_path / "moco.pdparams").touch()
    options = passl_config.words(read(written(tmp_path, weights=tmp_path / "moco"), []), [])
    assert options[options.index("--weights") + 1] == str(tmp_path / "moco.pdparams")


def test_no_setting_is_dropped_silently(tmp_path):
    """Each is taken over, refused, or named."""
    settings = read(written(tmp_path), ["Global.surprise=7"])
    passl_config.words(settings, [])
    passl_config.recipe(settings, processes=8)
    passl_config.half(settings, [])
    for key, why in passl_config.ELSEWHERE.items():
        settings.forget(key, why)
    assert settings.left == {}
    told = "\n".join(settings.remarks)
    assert "Global.surprise = 7: not known here, without effect" in told
    assert "Global.print_batch_step = 10" in told and "Export.export_type = paddle" in told
    assert "FP16.level = O1: Paddle computes in float32 on CPUs" in told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("Model.drop_rate=0.1", "Model.drop_rate is 0.1; here it can only be 0.0"),
        ("Model.name=SwinTransformer", "the model SwinTransformer is not known here"),
        ("LRScheduler.name=Poly", "LRScheduler.name is 'Poly'; here it can only be 'TimmCosine'"),
        ("LRScheduler.learning_rate=fast", "LRScheduler.learning_rate is 'fast', which is no number"),
        ("Optimizer.name=Adafactor", "Optimizer.name is 'Adafactor'"),
        ("Optimizer.no_weight_decay_name=['head']", "no_weight_decay_name can be"),
        ("DataLoader.Train.dataset.transform.2.TimmAutoAugment.config_str=original", "rand-m9-mstd0.5-inc1"),
        ("DataLoader.Train.dataset.transform.4.RandomErasing.mode=const", "RandomErasing.mode is 'const'"),
        ("DataLoader.Train.sampler.name=Other", "the sampler Other is not known here"),
        ("DataLoader.Train.dataset.batch_transform.0.TransformOpSampler.Mixup.epsilon=0.2", "different epsilon"),
        ("FP16.level=O2", "FP16.level O2 is not known here"),
    ],
)
def test_what_cannot_be_done_is_refused(tmp_path, override, message):
    settings = read(written(tmp_path), [override])
    with pytest.raises(UserError, match=r"DeiT_base\.yaml") as error:
        passl_config.recipe(settings, processes=8)
        passl_config.half(settings, [])
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


# ---------------------------------------------------------------- checkpoints
def test_tensors_are_called_and_counted_as_in_passl():
    """Facts noted from a run of main_moco.py for ViT-B."""
    model = passl_export.skeleton(recipes.load("moco_v3/vit_base_300ep"), synchronised=False)
    names = {name: parameter.name for name, parameter in model.named_parameters()}
    assert len(names) == 334 and sum(p.size for p in model.parameters()) == 215_720_960
    assert names["base_encoder.pos_embed"] == "vision_transformer_mo_co_0.w_2"
    assert names["base_encoder.blocks.0.attn.qkv.weight"] == "linear_0.w_0"
    assert names["base_encoder.head.1._mean"] == "batch_norm1d_0.w_1"
    assert list(names)[:8] == [
        "base_encoder.pos_embed",
        "base_encoder.cls_token",
        "base_encoder.patch_embed.proj.weight",
        "base_encoder.patch_embed.proj.bias",
        "base_encoder.blocks.0.norm1.weight",
        "base_encoder.blocks.0.norm1.bias",
        "base_encoder.blocks.0.attn.qkv.weight",
        "base_encoder.blocks.0.attn.qkv.bias",
    ]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Four training and two test images of two classes, in colour."""
    root = tmp_path_factory.mktemp("images")
    dice = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = dice.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


PRETRAIN = (
    "moco_v3/vit_small_300ep model.encoder.width=192 model.encoder.heads=3 model.objective.hidden=32 "
    "model.objective.dim=8 batch=2 epochs=1 warmup=0 monitor.knn_every=0 --workers 0 --export pd"
).split()


@pytest.fixture(scope="module")
def pretrained(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    assert pretrain.main([*PRETRAIN, "--data", str(images), "--out", str(folder)]) == 0
    return folder


def test_what_passl_needs_to_go_on_is_in_the_file(pretrained):
    tree = paddle.load(str(pretrained / "checkpoint_0000.pd"))
    assert set(tree) == {"epoch", "arch", "state_dict", "optimizer", "scaler"} and tree["epoch"] == 1
    made = recipes.load(str(pretrained / "recipe.toml"))
    theirs = passl_export.skeleton(made, synchronised=False)
    for parameter in theirs.parameters():
        parameter.initialize()
    missing, unexpected = theirs.set_state_dict(tree["state_dict"])
    assert not missing and not unexpected
    (group,) = tree["optimizer"]["param_groups"]
    assert group["params"] == [parameter.name for parameter in theirs.parameters()]
    trained = {p.name for p in inventory(made.model) if p.trainable}
    found = {name: tree["optimizer"]["state"].get(p.name) for name, p in theirs.named_parameters()}
    assert {name for name, state in found.items() if state} == trained
    kept = checkpoint.load(pretrained / "checkpoints" / "last")[0]["optimizer"]
    name = "base_encoder.blocks.3.mlp.fc1.weight"
    assert np.array_equal(found[name]["exp_avg_sq"].numpy().T, kept[f"exp_avg_sq/{name}"])
    assert found[name]["step"] == int(kept["step"]) == 2
    scaler = paddle.amp.AmpScaler(enable=True)
    scaler._enable = True  # which a CPU build turns off
    scaler.load_state_dict(tree["scaler"])
    assert scaler._init_loss_scaling == 65536.0


def test_a_run_of_several_processes_is_written_as_their_synchronised_model(pretrained):
    groups, known = checkpoint.load(pretrained / "checkpoints" / "last")
    made = recipes.load(str(pretrained / "recipe.toml"))
    tree = passl_export.tree(made, groups["model"], groups["optimizer"], {**known, "processes": 2})
    more = {"weight": 1.0, "bias": 0.0}
    for name in ("base_encoder.head.7", "momentum_encoder.head.7", "predictor.4"):
        for part, value in more.items():
            assert (tree["state_dict"][f"{name}.{part}"].numpy() == value).all()
    assert len(tree["state_dict"]) == len(tree["optimizer"]["param_groups"][0]["params"])


# ---------------------------------------------------------------- the whole way
def tuned(folder, images, weights, capsys):
    """Fine-tune with PASSL's settings, cut down to a few small steps."""
    overrides = (
        "Model.name=DeiT_tiny_patch16_224 Global.device=cpu Global.epochs=2 LRScheduler.warmup_epoch=0 "
        "DataLoader.Train.sampler.batch_size=2 DataLoader.Train.sampler.name=DistributedBatchSampler "
        "DataLoader.Train.loader.num_workers=0"
    ).split()
    folder.mkdir()
    file = written(folder, weights=weights, data=images, out=folder)
    words = [word for override in overrides for word in ("-o", override)]
    code = finetune.main(["--passl-config", str(file), *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    return folder / "DeiT_tiny_patch16_224", said.out


def test_from_pretraining_to_fine_tuning(pretrained, images, tmp_path, capsys):
    """pretrain -> checkpoint -> what PASSL's extract_weight.py did -> fine-tune; and from the original's own file."""
    source, target = pretrained / "checkpoint_0000.pd", tmp_path / "moco_vit.pdparams"
    assert weights(["convert", str(source), str(target), "--to", "passl"]) == 0
    extracted = paddle.load(str(target))
    assert set(extracted) == set(load_file(pretrained / "encoder.safetensors"))
    assert extracted["blocks.0.mlp.fc1.weight"].shape == [192, 768]
    one, said = tuned(tmp_path / "one", images, tmp_path / "moco_vit", capsys)
    assert "Global.print_batch_step = 10: every step is shown and recorded" in said
    assert "FP16.level = O1: Paddle computes in float32 on CPUs" in said
    assert len(losses(one)) == 4 and np.isfinite(losses(one)).all()
    convert(pretrained, tmp_path / "original.pth.tar", to="moco-v3")
    other, _ = tuned(tmp_path / "other", images, tmp_path / "original.pth.tar", capsys)
    assert losses(other) == losses(one)


def test_mistakes_are_one_line(tmp_path, capsys):
    for words in (
        ["--passl-config", str(tmp_path / "absent.yaml")],
        ["-o", "Global.epochs=1"],
        ["--passl-config", str(written(tmp_path)), "-o", "Model.drop_rate=0.5"],
    ):
        assert finetune.main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("triport: error: ") and error.count("\n") == 1
    assert pretrain.main(["tiny/test_moco_vit", "--export", "pth"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------- loss scaling
def learners(kind):
    spec: ModelSpec = small.MODELS["finetune-token"]
    rule = recipes.load("tiny/test_mae_finetune").optimizer
    return kind(probe._recipe(spec, rule), small.arrays(spec), distributed.start("cpu")), batch(small.inputs(spec))


def test_scaling_the_loss_changes_no_bit_where_nothing_overflows():
    (plain, given), (scaled, _) = learners(Learner), learners(passl_learner.ScaledLearner)
    for _ in range(3):
        one, two = (learner.step([given], passl_learner.Values(1e-3, 0.0)) for learner in (plain, scaled))
        assert one.loss == two.loss and one.gradient_norm == two.gradient_norm
    ours, theirs = plain.arrays(), scaled.arrays()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_an_overflow_halves_the_scale_and_leaves_the_step_out(monkeypatch):
    scaled, given = learners(passl_learner.ScaledLearner)
    before = scaled.arrays()
    scaled.scale = 2.0**130
    result = scaled.step([given], passl_learner.Values(1e-3, 0.0))
    assert result.bad is None and np.isfinite(result.loss) and scaled.scale == 2.0**129
    assert all(np.array_equal(before[name], array) for name, array in scaled.arrays().items())
    scaled.scale = 1024.0
    monkeypatch.setattr(passl_learner, "PATIENCE", 2)
    for wanted in (1024.0, 2048.0):
        assert scaled.step([given], passl_learner.Values(1e-3, 0.0)).extras["loss_scale"] == 1024.0
        assert scaled.scale == wanted
    other, _ = learners(passl_learner.ScaledLearner)
    other.load(scaled.arrays(), scaled.optimizer_arrays())
    assert (other.scale, other.good) == (scaled.scale, scaled.good)
