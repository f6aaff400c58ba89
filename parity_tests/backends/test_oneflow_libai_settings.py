"""LiBai's settings, on the command line and in a LazyConfig file, and what the model is that they ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from triport.core.spec import OptimizerSpec, ViT
from triport.parity_tests.tool import small
from triport.parity_tests.tool.ask import Question, ask

pytestmark = pytest.mark.framework("oneflow")
TRIAL = "triport.parity_tests.fixtures.libai_trial"
SGD = OptimizerSpec(kind="sgd", lr=0.05, weight_decay=0.01, decays="all")
# A file such as users of LiBai have; {path}, {out} are put in.
CONFIG = """
import oneflow as flow
from omegaconf import OmegaConf
from libai.config import LazyCall
from libai.evaluation import ClsEvaluator
from libai.models import VisionTransformer
from libai.optim import get_default_optimizer_params
from libai.scheduler import WarmupCosineLR

finetune = OmegaConf.create()
finetune.enable = True
finetune.weight_style = "pytorch"
finetune.path = "{path}"

recipe = dict(name="tiny/test_mae_finetune")
model = LazyCall(VisionTransformer)(
    img_size=16, patch_size=4, in_chans=1, embed_dim=32, depth=4, num_heads=2, num_classes=10, drop_path_rate=0.2
)
graph = OmegaConf.create(dict(enabled=True))
optim = LazyCall(flow.optim.AdamW)(
    params=LazyCall(get_default_optimizer_params)(clip_grad_max_norm=1.0, clip_grad_norm_type=2.0),
    lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95),
)
train = OmegaConf.create(dict(
    output_dir="{out}", train_micro_batch_size=8, num_accumulation_steps=2, train_epoch=4, warmup_ratio=0.25, seed=7,
    amp=dict(enabled=False), checkpointer=dict(period=5), scheduler=LazyCall(WarmupCosineLR)(warmup_factor=0.001),
    evaluation=dict(enabled=True, evaluator=LazyCall(ClsEvaluator)(topk=(1, 5))),
    dist=dict(data_parallel_size=1, tensor_parallel_size=2, pipeline_parallel_size=2),
))
train.dist.pipeline_num_layers = model.depth
"""
REPORTED = {
    "batch=16", "--accumulate=2", "schedule.epochs=4", "schedule.warmup_epochs=1.0", "seed=7", "optimizer.lr=0.001",
    "optimizer.lr_batch=16", "optimizer.weight_decay=0.05", "optimizer.betas=[0.9, 0.95]", "optimizer.clip_norm=1.0",
    "model.encoder.image=16", "model.encoder.patch=4", "model.encoder.channels=1", "model.encoder.width=32",
    "model.encoder.depth=4", "model.encoder.heads=2", "model.encoder.drop_path=0.2", "model.objective.classes=10",
}  # fmt: skip


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """What command lines become, by what they are about."""
    folder = tmp_path_factory.mktemp("settings")
    mae, config = folder / "mae.pth", folder / "config.py"
    mae.write_bytes(b"")
    (folder / "libai").mkdir()
    text = CONFIG.format(out="runs/x", path=mae)
    config.write_text(text)
    (folder / "amp.py").write_text(text.replace("amp=dict(enabled=False)", "amp=dict(enabled=True)"))
    (folder / "sums.py").write_text(text.replace("train_epoch", "global_batch_size=24, train_epoch"))
    (folder / "rate.py").write_text("optim = dict(lr=1.0)")
    (folder / "broken.py").write_text("train = dict(")
    (folder / "tree.py").write_text('from libai.config import get_config\ntrain = get_config("common/train.py").train')
    other = ["--tensor-parallel", "4", "--out=mine", "seed=1", "train.dist.pipeline_parallel_size=1"]
    style = "finetune.weight_style"
    lines: dict[str, list[str]] = {
        "degrees": ["tiny/x", "--tensor-parallel", "2", "--data-parallel=3"],
        "settings": ["tiny/x", "finetune.enable=true", f"{style}=pytorch", f"finetune.path={mae}"],
        "off": ["tiny/x", "--graph", "finetune.enable=False", "finetune.path=nowhere"],
        "style": ["tiny/x", f"{style}=torch", f"finetune.path={mae}"],
        "other style": ["tiny/x", f"{style}=pytorch", f"finetune.path={folder / 'libai'}"],
        "key": ["tiny/x", "finetune.pat=x"],
        "absent": ["tiny/x", "finetune.path=nowhere.pth"],
        "twice": ["tiny/x", "--weights", "a", f"finetune.path={mae}"],
        "config": ["--libai-config", str(config)],
        "above config": ["tiny/x", "--libai-config", str(config), *other],
        "measured": ["--libai-config", str(config), "--eval-only"],
        "amp": ["--libai-config", str(folder / "amp.py")],
        "sums": ["--libai-config", str(folder / "sums.py")],
        "rate": ["tiny/x", "--libai-config", str(folder / "rate.py")],
        "broken": ["--libai-config", str(folder / "broken.py")],
        "tree": ["--libai-config", str(folder / "tree.py")],
        "no config": ["--libai-config", str(folder / "none.py")],
        "zero": ["tiny/x", "--pipeline-parallel", "0"],
    }
    answers = ask("oneflow", [Question("settle", {"given": words}) for words in lines.values()], probe=TRIAL)
    return {"folder": str(folder), **dict(zip(lines, answers))}


def test_degrees_and_settings_become_words_of_a_run(settled):
    path = f"{settled['folder']}/mae.pth"
    assert settled["degrees"] == ["tiny/x", "3,2,1,False", ""]
    assert settled["settings"] == ["tiny/x", "--weights", path, "1,1,1,False", ""]
    assert settled["off"] == ["tiny/x", "1,1,1,True", ""]


def test_a_lazy_config_is_read_and_what_is_left_of_it_is_reported(settled):
    path = f"{settled['folder']}/mae.pth"
    *words, degrees, rest = settled["config"]
    assert words[0] == "tiny/test_mae_finetune" and words[-2:] == ["--weights", path]
    assert set(words[1:-2]) == {*REPORTED, "--out=runs/x"} and degrees == "1,2,2,True"
    assert rest.startswith("optim.params.clip_grad_norm_type, train.scheduler.warmup_factor, train.evaluation.enabled")


def test_half_precision_of_a_lazy_config_is_reported_to_be_off(settled):
    *words, _, rest = settled["amp"]
    assert set(words[1:-2]) == {*REPORTED, "--out=runs/x"}
    assert rest.endswith("train.amp.enabled (off: OneFlow computes in float32 here, always on CPUs)")
    assert "train.amp" not in settled["config"][-1]


def test_the_command_line_stands_above_a_lazy_config(settled):
    *words, degrees, _ = settled["above config"]
    assert words[0] == "tiny/x" and degrees == "1,4,1,True"
    assert {"--out=mine", "seed=1"} < set(words) and "seed=7" not in words and "--out=runs/x" not in words


def test_where_nothing_is_trained_only_the_model_of_a_lazy_config_counts(settled):
    path = f"{settled['folder']}/mae.pth"
    model = {word for word in REPORTED if word.startswith("model.")}
    assert set(settled["measured"][:-2]) == {"tiny/test_mae_finetune", *model, "--weights", path}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("style", ("torch", "pytorch, oneflow, triport")),
        ("other style", ("libai", "finetune.weight_style=oneflow")),
        ("key", ("finetune.pat", "Did you mean 'finetune.path'")),
        ("absent", ("nowhere.pth", "not there")),
        ("twice", ("--weights", "finetune.path", "one of them")),
        ("sums", ("global_batch_size 24", "train_micro_batch_size 8")),
        ("rate", ("optim.lr", "train.global_batch_size")),
        ("broken", ("broken.py", "Syntax")),
        ("tree", ("tree.py", "common/train.py", "write out")),
        ("no config", ("none.py",)),
        ("zero", ("whole numbers",)),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(settled, line, words):
    kind, printed = settled[line]
    assert kind == "error" and "\n" not in printed and all(word in printed for word in words), printed


# ---------------------------------------------------------------- the model
@pytest.fixture(scope="module")
def asked():
    """What the model on LiBai's layers is, and what meshes that do not fit are refused with."""
    spec, moco = small.MODELS["finetune-mean"], small.MODELS["moco-vit"]  # three blocks, eight heads
    given: dict[str, Any] = {"arrays": small.arrays(spec), "optimizer": SGD}
    alone = {"degrees": (1, 1, 1)}
    lines = {
        "about": Question("about", {**given, "spec": spec}),
        "processes": Question("refusal", {**given, "spec": spec, "degrees": (1, 2, 1)}),
        "resnet": Question("refusal", {**given, **alone, "spec": small.MODELS["finetune-resnet50"]}),
        "pretraining": Question("refusal", {**given, **alone, "spec": moco, "arrays": small.arrays(moco)}),
        "blocks": Question("division", {"spec": spec, "degrees": (1, 1, 2)}),
        "heads": Question("division", {"spec": spec, "degrees": (1, 16, 1)}),
    }
    return dict(zip(lines, ask("oneflow", list(lines.values()), probe=TRIAL)))


def test_the_model_is_the_specifications_on_libais_layers(asked):
    found, spec = asked["about"], small.MODELS["finetune-mean"]
    assert isinstance(spec.encoder, ViT) and found["of LiBai"]
    assert found["eps"] == [spec.encoder.norm_eps] == [1e-6] and found["layer norms"] == 2 * 3 + 1
    assert np.allclose(found["keep"], 1 - np.linspace(0, spec.encoder.drop_path, 3)) and spec.encoder.drop_path > 0
    assert np.array_equal(found["positions"], small.arrays(spec)["pos_embed"])


def test_libais_names_are_those_of_its_layout(asked):
    names = asked["about"]["names"]
    assert names["blocks.0.attn.qkv.weight"] == "blocks.0.self_attention.query_key_value.weight"
    assert names["fc_norm.bias"] == "norm.bias" and names["head.weight"] == "head.weight"


def test_a_mesh_that_does_not_fit_is_one_line(asked):
    assert "make 2 processes, started were 1" in asked["processes"] and "--processes" in asked["processes"]
    assert "plain ViTs" in asked["resnet"] and "pretrain" in asked["pretraining"]
    assert "--pipeline-parallel 2 does not divide the 3 blocks" in asked["blocks"]
    assert "--tensor-parallel 16 does not divide the 8 heads" in asked["heads"]
