"""Overrides: lists of numbers as people type them, and short names that set several fields at once."""

from __future__ import annotations

import pytest

from triport.core.errors import UserError
from triport.core.spec import overrides, recipe

COLOUR, GREY = "moco_v3/vit_small_300ep", "tiny/moco_vit_tiny"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("0.5,0.4,0.3", [0.5, 0.4, 0.3]),
        ("0.5, 0.4, 0.3", [0.5, 0.4, 0.3]),
        ("[.5,.5,.5]", [0.5, 0.5, 0.5]),
        ("[0.5, 0.4]", [0.5, 0.4]),
        ("[.5]", [0.5]),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.5e-3,1", [-0.0005, 1]),
        ("96,128", [96, 128]),
        ("3", 3),
        ("true", True),
        ("lars", "lars"),
        ("a,b", "a,b"),
        ("1,,2", "1,,2"),
        ("[.5,.5", "[.5,.5"),
        ("", ""),
    ],
)
def test_a_value_is_what_its_text_means(text: str, meant: object) -> None:
    found = overrides.value(text)
    assert found == meant and type(found) is type(meant)


@pytest.mark.parametrize("text", ["0.5,0.5,0.5", "[.5,.5,.5]", "[0.5, 0.5, 0.5]", ".5", "0.5"])
def test_means_can_be_typed_in_any_of_these_ways(text: str) -> None:
    one = recipe.load(COLOUR, [f"train.mean={text}"])
    assert one.train.mean == (0.5, 0.5, 0.5) and one.evaluate.mean != one.train.mean
    both = recipe.load(COLOUR, [f"mean={text}", "std=.2,.3,.4"])
    assert both.train.mean == both.evaluate.mean == (0.5, 0.5, 0.5)
    assert both.train.std == both.evaluate.std == (0.2, 0.3, 0.4)


def test_channels_take_mean_and_deviation_along() -> None:
    grey = recipe.load(COLOUR, ["channels=1"])
    assert grey.model.encoder.channels == 1
    assert grey.train.mean == grey.evaluate.mean == (0.449,)  # the mean of ImageNet's three
    assert grey.train.std == (0.226,)
    colour = recipe.load(GREY, ["channels=3"])
    assert colour.train.mean == (0.286,) * 3 and colour.evaluate.std == (0.353,) * 3
    own = recipe.load(COLOUR, ["channels=4", "mean=.5", "std=0.2,0.2,0.2,0.1"])
    assert own.train.mean == (0.5,) * 4 and own.evaluate.std == (0.2, 0.2, 0.2, 0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["channels=4"], r"train\.mean has 3 values for model\.encoder\.channels = 4.*mean=0\.5"),
        (["channels=many"], "channels: expected a whole number"),
        (["channels=0"], "must be above 0"),
        (["mean=0.5,0.5"], r"train\.mean has 2 values"),
        (["mean=dark"], "train.mean: expected a list"),
        (["std=0,0,0"], "must be above 0"),
        (["chanels=1"], "Did you mean 'channels'"),
        (["maen=1"], "Did you mean 'mean'"),
    ],
)
def test_what_does_not_fit_is_named(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe.load(COLOUR, changes)


def test_the_remedy_of_a_wrong_number_of_channels_works() -> None:
    with pytest.raises(UserError, match=r"or say channels=1\.") as caught:
        recipe.load(COLOUR, ["model.encoder.channels=1"])
    assert "mean=0.5 std=0.25" in str(caught.value)
    assert recipe.load(COLOUR, ["model.encoder.channels=1", "mean=0.5", "std=0.25"]).train.std == (0.25,)
    assert recipe.load(COLOUR, ["channels=1"]).evaluate.std == (0.226,)
