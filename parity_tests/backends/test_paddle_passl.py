"""PASSL beside this project: its checkpoint files, loss scaling, and the way from pretraining to fine-tuning."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from triport.core.model.inventory import inventory
from triport.core.record import checkpoint
from triport.core.spec import ModelSpec
from triport.core.spec import recipe as recipes
from triport.parity_tests.backends.test_runs import losses
from triport.parity_tests.tool import small
from triport.parity_tests.tool.questions import batch
from triport.weights.commands.command import main as weights
from triport.weights.commands.convert import convert

pytest.importorskip("paddle", reason="Paddle is not in this interpreter: run this in .venvs/paddle")

from triport.backends.paddle import distributed, finetune, linear, pretrain
from triport.backends.paddle.learner import Learner
from triport.backends.paddle.passl import export as passl_export
from triport.backends.paddle.passl import modules as passl_modules
from triport.backends.paddle.runtime import paddle
from triport.core.backend import scaled as core_scaled
from triport.core.backend.probe import recipe_around
from triport.core.model.schedule import Values
from triport.parity_tests.backends.test_paddle_passl_config import written

pytestmark = pytest.mark.inside


# ---------------------------------------------------------------- checkpoints
def test_tensors_are_called_and_counted_as_in_passl():
    """Facts noted from a run of main_moco.py for ViT-B."""
    model = passl_modules.skeleton(recipes.load("moco_v3/vit_base_300ep").model, synchronised=False)
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
    rng = np.random.default_rng(0)
    for split, count in (("train", 2), ("val", 1)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
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
    theirs = passl_modules.skeleton(made.model, synchronised=False)
    for parameter in theirs.parameters():
        parameter.initialize()
    missing, unexpected = theirs.set_state_dict(tree["state_dict"])
    assert not missing and not unexpected
    (group,) = tree["optimizer"]["param_groups"]
    assert group["params"] == [parameter.name for parameter in theirs.parameters()]
    trained = {p.name for p in inventory(made.model) if p.trainable}
    found = {name: tree["optimizer"]["state"].get(p.name) for name, p in theirs.named_parameters()}
    assert {name for name, state in found.items() if state} == trained
    saved = checkpoint.load(pretrained / "checkpoints" / "last")[0]["optimizer"]
    name = "base_encoder.blocks.3.mlp.fc1.weight"
    assert np.array_equal(found[name]["exp_avg_sq"].numpy().T, saved[f"exp_avg_sq/{name}"])
    assert found[name]["step"] == int(saved["step"]) == 2
    with pytest.warns(UserWarning, match="AmpScaler can only be enabled"):
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


def test_maes_file_is_as_its_script_saves_it(images, tmp_path):
    """Names and groups after the source of PASSL's MAE: frozen tables are left out, short tensors not decayed."""
    run = tmp_path / "run"
    words = "batch=2 epochs=1 warmup=0 monitor.knn_every=0 --workers 0 --export pd --data".split()
    words += [str(images), "--out", str(run)]
    assert pretrain.main(["tiny/test_mae_vit", *words]) == 0
    found, made = paddle.load(str(run / "checkpoint_0000.pd")), recipes.load(str(run / "recipe.toml"))
    assert set(found) == {"model", "optimizer", "epoch", "scaler"} and found["epoch"] == 0
    theirs = passl_modules.skeleton(made.model, synchronised=False)
    for parameter in theirs.parameters():
        parameter.initialize()
    assert theirs.set_state_dict(found["model"]) == ([], [])
    names = {name: parameter.name for name, parameter in theirs.named_parameters()}
    tokens = ("cls_token", "pos_embed", "mask_token", "decoder_pos_embed")
    assert [names[token] for token in tokens] == [f"masked_autoencoder_vi_t_0.w_{i}" for i in range(4)]
    plain, decayed = found["optimizer"]["param_groups"]
    assert (plain["weight_decay"], decayed["weight_decay"]) == (0.0, made.optimizer.weight_decay)
    short = [name for name in names if name.endswith((".bias", "norm.weight", "norm1.weight", "norm2.weight"))]
    assert plain["params"] == [names[name] for name in short]
    left = [name for name in names if name not in short and not name.endswith("pos_embed")]
    assert decayed["params"] == [names[name] for name in left] and "cls_token" in left
    saved = checkpoint.load(run / "checkpoints" / "last")[0]["optimizer"]
    moment = found["optimizer"]["state"][names["decoder_embed.weight"]]
    assert np.array_equal(moment["exp_avg"].numpy().T, saved["exp_avg/decoder_embed.weight"])
    assert set(found["optimizer"]["state"]) == {*plain["params"], *decayed["params"]}


def test_models_that_passl_lacks_come_as_they_are_converted(images, tmp_path):
    words = "batch=2 epochs=1 warmup=0 monitor.knn_every=0 --workers 0 --export pd --data".split()
    assert pretrain.main(["tiny/test_moco_vit_conv", *words, str(images), "--out", str(tmp_path / "run")]) == 0
    found = paddle.load(str(tmp_path / "run" / "checkpoint_0000.pd"))
    saved = checkpoint.load(tmp_path / "run" / "checkpoints" / "last")[0]["model"]
    name = "base_encoder.patch_embed.proj.3.weight"
    assert found["epoch"] == 1 and np.array_equal(found["state_dict"][name].numpy(), saved[name])


def test_as_many_files_stay_as_checkpoints(pretrained, tmp_path):
    run = shutil.copytree(pretrained, tmp_path / "run")
    for epoch in (1, 2, 3):
        (run / f"checkpoint_{epoch:04d}.pd").touch()
    (run / "checkpoint_0001.pd.json").touch()
    passl_export.write(run / "checkpoints" / "epoch_1")
    assert sorted(path.name[11:15] for path in run.glob("*.pd*")) == ["0000", "0002", "0003"]


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
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return folder / "DeiT_tiny_patch16_224", printed.out


def test_from_pretraining_to_fine_tuning(pretrained, images, tmp_path, capsys):
    """pretrain -> .pd -> linear probe; .pd -> what extract_weight.py did -> fine-tune; and from the original's file."""
    source, target = pretrained / "checkpoint_0000.pd", tmp_path / "moco_vit.pdparams"
    cut = f"model.encoder.width=192 model.encoder.heads=3 batch=2 epochs=2 warmup=0 --workers 0 --data {images}".split()
    probed = ("transfer/moco_vit_base_linear", *cut, "--weights", str(source), "--out", str(tmp_path / "probe"))
    assert linear.main(probed) == 0 and np.isfinite(losses(tmp_path / "probe")).all()
    printed = capsys.readouterr().out
    assert "150 arrays of layout passl-moco" in printed and "frozen encoder is bit-equal" in printed
    assert weights(["convert", str(source), str(target), "--to", "passl"]) == 0
    extracted = paddle.load(str(target))
    assert set(extracted) == set(load_file(pretrained / "encoder.safetensors"))
    assert extracted["blocks.0.mlp.fc1.weight"].shape == [192, 768]
    one, printed = tuned(tmp_path / "one", images, tmp_path / "moco_vit", capsys)
    assert "Global.print_batch_step = 10: every step is shown and recorded" in printed
    assert "FP16.level = O1: Paddle computes in float32 on CPUs" in printed
    assert len(losses(one)) == 4 and np.isfinite(losses(one)).all()
    convert(pretrained, tmp_path / "original.pth.tar", to="moco-v3")
    other, _ = tuned(tmp_path / "other", images, tmp_path / "original.pth.tar", capsys)
    same = ("data.repeats=1", "optimizer.lr_batch=2")  # of so few images
    recipe = ("transfer/passl_deit_base_finetune", *cut, *same, "--weights", str(target))
    assert finetune.main([*recipe, "--out", str(tmp_path / "recipe")]) == 0
    assert losses(other) == losses(one) == losses(tmp_path / "recipe")


# ---------------------------------------------------------------- loss scaling
def learned(scaled):
    spec: ModelSpec = small.MODELS["finetune-token"]
    rule = recipes.load("tiny/test_mae_finetune").optimizer
    learner = Learner(recipe_around(spec, rule), small.arrays(spec), distributed.start("cpu"))
    learner.scaled = scaled
    return learner, batch(small.inputs(spec))


def test_scaling_the_loss_changes_no_bit_where_nothing_overflows():
    (plain, given), (scaled, _) = learned(False), learned(True)
    for _ in range(3):
        one, two = (learner.step([given], Values(1e-3, 0.0)) for learner in (plain, scaled))
        assert one.loss == two.loss and one.gradient_norm == two.gradient_norm
    ours, theirs = plain.arrays(), scaled.arrays()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert "loss_scale" in scaled.optimizer_arrays() and "loss_scale" not in plain.optimizer_arrays()


def test_an_overflow_halves_the_scale_and_leaves_the_step_out(monkeypatch):
    scaled, given = learned(True)
    before = scaled.arrays()
    scaled.scale = 2.0**130
    result = scaled.step([given], Values(1e-3, 0.0))
    assert result.bad is None and np.isfinite(result.loss) and scaled.scale == 2.0**129
    assert all(np.array_equal(before[name], array) for name, array in scaled.arrays().items())
    scaled.scale = 1024.0
    monkeypatch.setattr(core_scaled, "PATIENCE", 2)
    for wanted in (1024.0, 2048.0):
        assert scaled.step([given], Values(1e-3, 0.0)).extras["loss_scale"] == 1024.0
        assert scaled.scale == wanted
    other, _ = learned(True)
    other.load(scaled.arrays(), scaled.optimizer_arrays())
    assert (other.scale, other.good) == (scaled.scale, scaled.good)
