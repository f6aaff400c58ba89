"""Recipes: every shipped file loads, says what it is and round-trips; mistakes are named; overrides reach all."""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triport import launch
from triport.core import options
from triport.core.errors import UserError
from triport.core.spec import Recipe, checks, recipe, schema, spec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ALL = recipe.names()
SMALL = "moco_v3/vit_small_300ep"
TEXT = recipe.find(SMALL).read_text(encoding="utf-8")


def edited(old: str, new: str, name: str = SMALL, overrides: tuple[str, ...] = ()) -> Recipe:
    text = recipe.find(name).read_text(encoding="utf-8")
    assert old in text
    return recipe.parse(text.replace(old, new, 1), Path("mine.toml"), overrides)


# ---------------------------------------------------------------- the shipped files
def test_every_recipe_that_was_promised_is_there() -> None:
    moco = [*(f"resnet50_{epochs}ep" for epochs in (100, 300, 800, 1000)), "vit_small_300ep", "vit_base_300ep"]
    moco += ["vit_small_300ep_1node", "vit_conv_small_300ep", "vit_conv_base_300ep", "vit_large_300ep"]
    mae = [f"mae/vit_{size}_{epochs}ep" for size in ("base", "large", "huge") for epochs in (800, 1600)]
    probes = ["moco_resnet50_linear", "moco_vit_small_linear", "moco_vit_base_linear", "moco_vit_large_linear"]
    tuned = ["moco_vit_small_finetune", "moco_vit_base_finetune", "moco_vit_large_finetune", "passl_deit_base_finetune"]
    tuned += ["mmpretrain_vit_base_finetune"]
    tuned += [f"moco_vit_base_{name}" for name in ("cifar10", "cifar100", "flowers", "pets")]
    both = [f"mae_vit_{size}_{task}" for size in ("base", "large", "huge") for task in ("linear", "finetune")]
    tiny = ["moco_vit_tiny", "moco_vit_conv_tiny", "moco_resnet_tiny", "moco_resnet10", "mae_vit_tiny"]
    tiny += ["moco_linear", "mae_linear", "moco_finetune", "mae_finetune"]
    transfer = [f"transfer/{name}" for name in [*probes, *tuned, *both, "mae_vit_huge_finetune_448"]]
    photos = [
        f"photos/{name}{task}"
        for name in ("moco_resnet18", "moco_vit_small", "mae_vit_small")
        for task in ("", "_linear")
    ]
    expected = {*photos, *(f"moco_v3/{name}" for name in moco), *mae, *transfer, *(f"tiny/{name}" for name in tiny)}
    assert {name for name in ALL if not name.startswith("tiny/test_")} == expected
    assert sum(name.startswith("tiny/test_") for name in ALL) == 8


@pytest.mark.parametrize("name", ALL)
def test_a_shipped_recipe_loads_and_its_resolved_text_loads_back_equal(name: str) -> None:
    one = recipe.load(name)
    assert one.name == name
    again = recipe.parse(recipe.to_toml(one), Path("runs/some/recipe.toml"))
    assert again == one  # its name, title and source too: a run folder's recipe is not called after its path


@pytest.mark.parametrize("name", ALL)
def test_a_shipped_recipe_opens_with_what_whence_how_well_and_the_command(name: str) -> None:
    text = recipe.find(name).read_text(encoding="utf-8")
    head = re.sub(r"\n# +", " ", text.split("\n\n")[0])
    one = recipe.load(name)
    assert text.startswith("# ") and "\n\ntitle = " in text
    assert f"Source: {one.source}" in re.sub(r" +", " ", head)
    assert "Reported:" in head and "Hardware:" in head
    for top1 in one.reported.values():
        assert f"{top1:g} %" in head or f"{top1:.1f} %" in head
    assert name.startswith("tiny/") or "--data /data/" in head


def commands(name: str) -> list[list[str]]:
    """The commands of a recipe's header, as lists of words."""
    head = recipe.find(name).read_text(encoding="utf-8").split("\n\n")[0]
    lines = head.replace("\\\n#", "").splitlines()
    return [line.removeprefix("#").split() for line in lines if re.match(r"#   (torchrun|triport) ", line)]


@pytest.mark.parametrize("name", ALL)
def test_the_commands_of_a_header_are_understood_and_divide_the_batch(name: str) -> None:
    one, (torchrun, triport) = recipe.load(name), sorted(commands(name))
    at = torchrun.index("-m")
    launcher, words = launch.parser(one.task).parse_known_args([{"N": "0"}.get(word, word) for word in triport[2:]])
    assert torchrun[at + 1] == f"triport.backends.torch.{one.task}" and triport[1] == one.task
    assert torchrun[at + 2 :] == words  # one run, started in two ways
    parsed = options.parse(one.task, words)
    assert parsed.recipe == name and not parsed.overrides and parsed.out == f"runs/{name.replace('/', '_')}"
    assert (parsed.weights is None) == (one.task == "pretrain")
    processes = launcher.processes or 1
    starter = dict(zip(torchrun[1:at:2], torchrun[2:at:2], strict=True))
    assert (int(starter["--nproc_per_node"]), int(starter.get("--nnodes", "1"))) == (processes, launcher.nodes)
    each = re.search(r", (\d+) images on each", recipe.find(name).read_text(encoding="utf-8"))
    assert launcher.nodes * processes * int(each[1] if each else one.batch) == one.batch
    assert each or name.startswith(("tiny/", "photos/"))
    assert (launcher.node_rank, launcher.master) == ((0, "HOST:29500") if launcher.nodes > 1 else (None, None))


def test_names_are_in_the_order_of_their_numbers() -> None:
    expected = [f"moco_v3/resnet50_{n}ep" for n in (100, 300, 800, 1000)]
    assert [name for name in ALL if "resnet50_" in name][:4] == expected


# ---------------------------------------------------------------- mistakes
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("lr = 1.5e-4", "lrr = 1.5e-4", r"Unknown field 'optimizer\.lrr'\. Did you mean 'lr'\?"),
        ("[schedule]", "[shedule]", r"Unknown field 'shedule'\. Did you mean 'schedule'\?"),
        ("heads = 12", "", r"Missing field 'model\.encoder\.heads'"),
        ("epochs = 300\nwarmup_epochs = 40", "", r"Missing fields 'schedule\.epochs', 'schedule\.warmup_epochs'"),
        ("width = 384", 'width = "384"', r"model\.encoder\.width: expected a whole number, got '384'"),
        ("width = 384", "width = 384.0", r"model\.encoder\.width: expected a whole number, got 384\.0"),
        ("width = 384", "width = true", r"model\.encoder\.width: expected a whole number, got true"),
        ("frozen_patch = true", "frozen_patch = 1", r"frozen_patch: expected true or false, got 1"),
        ("temperature = 0.2", "temperature = nan", r"temperature: expected a finite number"),
        ('kind = "vit"', 'kind = "vitt"', r"model\.encoder\.kind: 'vitt' is not one of vit, resnet.*mean 'vit'\?"),
        ('kind = "vit"', "", r"Missing field 'model\.encoder\.kind': one of vit, resnet"),
        ('kind = "solarize"', 'kind = "solarise"', r"train\.views\.1\.4\.kind: 'solarise'.*Did you mean 'solarize'"),
        ('position = "moco"', 'position = "moko"', r"model\.encoder\.position: 'moko' .* Did you mean 'moco'"),
        ("image = 224", "image = [224]", r"model\.encoder\.image: expected 2 values, got 1"),
        ("image = 224", 'image = "224"', r"model\.encoder\.image: expected a list, got '224'"),
        ("betas = [0.9, 0.999]", "betas = [0.9, 'x']", r"optimizer\.betas\.1: expected a number, got 'x'"),
        ("[data]", "data = 3\n[dataa]", r"^mine\.toml: "),
        ("p = 0.2}", "p = 0.2, q = 1}", r"Unknown field 'train\.views\.0\.2\.q'"),
        ("batch = 4096", "batch = ", r"mine\.toml is not valid TOML"),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_field(old: str, new: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        edited(old, new)
    assert str(caught.value).startswith("mine.toml") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        (SMALL, "model.encoder.image=100", r"image \(100, 100\) is not a multiple of the patch.*\(96, 96\)"),
        (SMALL, "model.encoder.image=240", r"train\.views\.0\.0\.size \(224, 224\) differs.*image=240 sets all"),
        (SMALL, "model.encoder.heads=7", r"width 384 is not a multiple of its 7 heads"),
        (
            SMALL,
            "model.encoder={kind='vit', width=6, depth=1, heads=2, position='moco', initial_values='moco'}",
            r"of 4",
        ),
        (SMALL, "model.encoder.stem=conv", r"frozen_patch is for the plain patch stem"),
        ("moco_v3/vit_conv_small_300ep", "model.encoder.patch=8", r"'conv' needs the patch \(16, 16\)"),
        ("moco_v3/vit_conv_small_300ep", "model.encoder.width=300", r"multiple of 8"),
        ("mae/vit_base_800ep", "model.objective.mask_ratio=1.0", r"mask_ratio must lie between 0 and 1"),
        ("mae/vit_base_800ep", "model.objective.mask_ratio=0.999", r"hides all or none"),
        ("mae/vit_base_800ep", "model.objective.decoder_heads=7", r"decoder_width 512"),
        (SMALL, "schedule.epochs=40", r"warmup_epochs 40 must be below schedule\.epochs 40.*warmup=4"),
        (SMALL, "optimizer.lr=0", r"optimizer\.lr must be above 0"),
        (SMALL, "optimizer.betas=[0.9, 1.0]", r"optimizer\.betas\.1 must lie in \[0, 1\)"),
        (SMALL, "train.views.0.1.p=1.5", r"train\.views\.0\.1\.p must lie in \[0, 1\]"),
        (SMALL, "train.mean=[0.5]", r"train\.mean has 1 value for model\.encoder\.channels = 3"),
        (SMALL, "model.encoder.channels=1", r"train\.mean has 3 values for model\.encoder\.channels = 1"),
        (SMALL, "train.views=[[{kind='center_crop'}]]", r"train\.views: 2 needed"),
        (SMALL, "evaluate.views=[[{kind='resize', size=256, interpolation='bicubic'}]]", r"evaluate\.views\.0 needs"),
        (SMALL, "task=linear", r"the task 'linear' needs 'classifier', got 'moco'"),
        (SMALL, "mix.smoothing=0.1", r"need labels"),
        (SMALL, "batch=1", r"batch must be 2 or more"),
        ("transfer/mae_vit_base_finetune", "batch=15", r"batch must be even"),
        ("transfer/mae_vit_base_finetune", "task=linear", r"frozen_encoder must be true"),
        ("transfer/moco_resnet50_linear", "model.objective.pooling=token", r"ResNet has no class token"),
        ("transfer/mae_vit_base_finetune", "train.views.0.3={kind='random_erasing', max_area=0.01}", r"min_area 0\.02"),
    ],
)
def test_sizes_that_do_not_fit_are_named(name: str, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recipe.load(name, [override])
    assert override in str(caught.value)


@pytest.mark.parametrize("name", [SMALL, "mae/vit_base_800ep", "transfer/mae_vit_base_finetune"])
def test_a_recipe_of_an_earlier_version_loads(name: str, tmp_path: Path) -> None:
    """`first_values` is what earlier versions called `initial_values`, in configs and in the recipes of checkpoints."""
    own = recipe.load(name)
    for text in (recipe.find(name).read_text(encoding="utf-8"), recipe.to_toml(own)):
        old = text.replace("\ninitial_values = ", "\nfirst_values = ")
        assert old != text and recipe.parse(old, recipe.find(name)) == own
    (tmp_path / "old.toml").write_text(old, encoding="utf-8")
    loaded = recipe.load(str(tmp_path / "old.toml"), ["model.encoder.initial_values=timm"])
    assert isinstance(loaded.model.encoder, spec.ViT) and loaded.model.encoder.initial_values == "timm"
    assert "first_values" not in recipe.to_toml(loaded)


def test_a_field_under_its_old_and_its_new_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"Unknown field 'model\.encoder\.first_values'"):
        edited('initial_values = "moco"', 'initial_values = "moco"\nfirst_values = "mae"')
    with pytest.raises(UserError, match=r"model\.encoder\.initial_values: 'odd' is not one of moco, mae, timm"):
        edited('initial_values = "moco"', 'first_values = "odd"')


def test_erasing_stands_last() -> None:
    flip, erase = "{kind='horizontal_flip'}", "{kind='random_erasing'}"
    crop = "{kind='random_resized_crop', min_area=0.1, interpolation='bicubic'}"
    with pytest.raises(UserError, match="stands last"):
        recipe.load("transfer/mae_vit_base_finetune", [f"train.views=[[{crop}, {erase}, {flip}]]"])


def test_every_number_of_the_vocabulary_has_a_range() -> None:
    known = {*checks.RANGES}
    for kind in vars(spec).values():
        if dataclasses.is_dataclass(kind) and isinstance(kind, type):
            for field in dataclasses.fields(kind):
                numeric = re.search(r"\b(int|float|Pair)\b", str(field.type))
                assert not numeric or field.name in known, f"{kind.__name__}.{field.name}"


# ---------------------------------------------------------------- names and paths
@pytest.mark.parametrize("name", [SMALL, f"{SMALL}.toml", f"configs/{SMALL}.toml", str(recipe.find(SMALL))])
def test_a_recipe_is_found_by_name_or_path(name: str) -> None:
    assert recipe.load(name) == recipe.load(SMALL)


def test_a_recipe_of_ones_own_is_called_after_its_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(TEXT, encoding="utf-8")
    assert dataclasses.replace(recipe.load(str(mine)), name=SMALL) == recipe.load(SMALL)
    assert recipe.load(str(mine)).name == "mine"


@pytest.mark.parametrize(
    ("name", "hint"),
    [("moco_v3/vit_smal_300ep", SMALL), ("vit_small_300ep", SMALL), ("mae/vit_base_160ep", "mae/vit_base_1600ep")],
)
def test_an_unknown_recipe_says_what_is_near(name: str, hint: str) -> None:
    with pytest.raises(UserError, match=f"No recipe '{name}'. Did you mean '{hint}'"):
        recipe.find(name)


def test_an_unknown_recipe_with_nothing_near_names_the_list() -> None:
    with pytest.raises(UserError, match="triport recipes"):
        recipe.find("qqq")


def test_a_file_that_is_not_a_text_is_a_one_line_error(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="Cannot read the recipe"):
        recipe.load(str(tmp_path / "x.toml"))


# ---------------------------------------------------------------- overrides
def test_overrides_reach_every_kind_of_field() -> None:
    texts = ["optimizer.lr=3e-4", "train.views.1.3.p=0.5", "model.encoder.position=mae", "optimizer.clip_norm=3"]
    texts += ["optimizer.betas=[0.8, 0.9]", "seed=7", "monitor.knn_every=5", "data.name=my own data", "reported.knn=50"]
    one = recipe.load(SMALL, texts)
    assert one.optimizer.lr == 3e-4 and one.optimizer.clip_norm == 3.0 and one.optimizer.betas == (0.8, 0.9)
    assert one.train.views[1][3] == spec.GaussianBlur(p=0.5) and one.train.views[0] == recipe.load(SMALL).train.views[0]
    assert isinstance(one.model.encoder, spec.ViT) and one.model.encoder.position == "mae"
    assert (one.seed, one.monitor.knn_every, one.data.name) == (7, 5, "my own data")
    assert one.reported == {"linear": 73.2, "finetune": 81.4, "knn": 50.0}
    assert recipe.load(SMALL, [*texts, "optimizer.clip_norm=none"]).optimizer.clip_norm is None


def test_every_field_can_be_overridden_with_its_own_value() -> None:
    one = recipe.load("tiny/mae_finetune")
    leaves = list(_leaves(schema.plain(one), ""))
    assert len(leaves) > 80
    texts = [f"{key}={tomli_w.dumps({'value': value}).partition(' = ')[2].strip()}" for key, value in leaves]
    assert recipe.load("tiny/mae_finetune", texts) == one


def _leaves(node: Any, where: str) -> Any:
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in items:
        yield from _leaves(value, f"{where}.{key}" if where else str(key))
    if not isinstance(node, (dict, list)) and node is not None:
        yield where, node


def test_shorthands() -> None:
    one = recipe.load(SMALL, ["epochs=10", "warmup=1", "lr=1e-3", "batch=64", "image=96"])
    assert (one.schedule.epochs, one.schedule.warmup_epochs, one.optimizer.lr, one.batch) == (10, 1.0, 1e-3, 64)
    assert one.model.encoder.image == (96, 96)
    assert [view[0].size for view in one.train.views] == [(96, 96)] * 2  # type: ignore[union-attr]
    assert one.evaluate.views[0][0].size == 109 and one.evaluate.views[0][1].size == (96, 96)  # type: ignore[union-attr]


def test_image_may_be_no_square_and_keeps_a_recipes_own_ratio() -> None:
    wide = recipe.load(SMALL, ["image=[96, 128]"])
    assert wide.model.encoder.image == (96, 128) and wide.evaluate.views[0][0].size == 146  # type: ignore[union-attr]
    assert recipe.load("tiny/moco_vit_tiny", ["image=56"]).evaluate.views[0][0].size == 56  # type: ignore[union-attr]
    large = recipe.load("transfer/mae_vit_huge_finetune_448", ["image=224"])
    assert large.evaluate.views[0][0].size == 256  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lrr=1", r"Override 'optimizer\.lrr=1': unknown field 'optimizer\.lrr'\. Did you mean 'lr'"),
        ("epoch=10", r"unknown field 'epoch'\. Did you mean 'epochs'"),
        ("epochs", r"Override 'epochs': write key=value"),
        ("=3", r"write key=value"),
        ("optimizer.lr=fast", r"Override 'optimizer\.lr=fast': optimizer\.lr: expected a number, got 'fast'"),
        ("optimizer.lr=none", r"expected a number, got 'none'"),
        ("train.views.0.9.p=1", r"'train\.views\.0\.9' needs an index from 0 to 4"),
        ("train.views.x=1", r"'train\.views\.x' needs an index from 0 to 1"),
        ("batch.size=1", r"'batch' is a value, not a table"),
        ("image=big", r"image: expected a list, got 'big'"),
        ("epochs=1.5", r"schedule\.epochs: expected a whole number, got 1\.5"),
        ("seed=1\nbatch=2", r"seed: expected a whole number, got '1\\nbatch=2'"),
        ("model.encoder.kind=resnet", r"Unknown field 'model\.encoder\.heads'"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.load(SMALL, [override])


# ---------------------------------------------------------------- any recipe at all
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
PLAIN = {int: st.integers(), float: st.floats(allow_nan=False, allow_infinity=False), bool: st.booleans(), str: TEXTS}


def anything(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of an annotated type, every field of a dataclass filled."""
    origin, parts = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return st.builds(kind, **{name: anything(hint) for name, hint in get_type_hints(kind).items()})
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is dict:
        return st.dictionaries(TEXTS, anything(parts[1]), max_size=3)
    if origin is tuple and parts[-1] is Ellipsis:
        return st.lists(anything(parts[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*map(anything, parts))
    if origin is not None:  # a union
        return st.one_of(*map(anything, parts))
    return PLAIN.get(kind, st.none())


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(anything(Recipe))
def test_any_recipe_round_trips(one: Recipe) -> None:
    again = schema.read(Recipe, tomllib.loads(recipe.to_toml(one)))
    assert again == one
