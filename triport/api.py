"""The public functions behind `import triport`: models by name, features and predictions of images."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Union, overload

import numpy as np
from PIL import Image

from triport import environments
from triport.core import rng
from triport.core.augment import augment, pixels
from triport.core.data.readers.image_files import read_image
from triport.core.errors import UserError
from triport.core.model.init import initial_values
from triport.core.run.subject import Subject
from triport.core.spec import Classifier, ModelSpec, Recipe, recipe, zoo

if TYPE_CHECKING:
    from triport.verbs.embed import Features

Split = Literal["train", "val", "all"]
ImageLike = Union[str, Path, Image.Image, np.ndarray]


def list_models() -> list[str]:
    """Return the names that `create_model` knows."""
    return zoo.names()


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    return recipe.names()


def create_model(
    name: str | ModelSpec, *, backend: str | None = None, weights: str | Path | None = None, seed: int = 0
) -> Any:
    """Return a model as the framework's own module, on the CPU, in the framework's default mode.

    name: of `list_models()`, of a recipe, or a ModelSpec. backend: "torch", "paddle" or "oneflow"; default: the one
    installed in this interpreter. weights: any checkpoint that `triport inspect` knows; of a classifier it may be an
    encoder alone, then the head is drawn from `seed`, as all of it is without weights.
    Raises UserError for a name, framework or file that does not fit, in one line.
    """
    spec = find_spec(name)
    from triport.inference import with_features  # which uses this file

    build = backend_module(backend, "build").build
    arrays = initial_values(spec, seed) if weights is None else load_arrays(spec, Path(weights), seed)
    return with_features(build(spec, arrays), spec)


def find_spec(name: str | ModelSpec) -> ModelSpec:
    """Return the model of a name: one of `list_models()` or a recipe's."""
    if isinstance(name, ModelSpec):
        return name
    if zoo.knows(name):
        return zoo.find(name).spec
    if name in recipe.names() or Path(name).is_file():
        return recipe.load(name).model
    raise UserError(f"no model '{name}'.{zoo.near(name) or ' `triport models` lists them.'}")


def load_arrays(spec: ModelSpec, path: Path, seed: int) -> dict[str, np.ndarray]:
    """Return every array of a model from a checkpoint; a classifier's from a classifier or from an encoder."""
    from triport.core.model.inventory import head_name
    from triport.weights import load_encoder, load_model
    from triport.weights.commands.inspect import inspect

    drawn = initial_values(spec, seed)
    if not isinstance(spec.objective, Classifier) or inspect(path).method == "classifier":
        found, report = load_model(path, spec)
        missing = [key for key in drawn if key not in found]
    else:
        found, report = load_encoder(path, spec)
        fresh = (f"{head_name(spec.encoder)}.", "fc_norm.")
        missing = [key for key in drawn if key not in found and not key.startswith(fresh)]
    if missing or report.unknown:
        names = ", ".join([*missing, *report.unknown][:3])
        raise UserError(f"{path} does not fit the model: {names}. `triport inspect {path}` shows what it is.")
    return {**drawn, **found}


@overload
def embed(
    weights: str | Path,
    images: np.ndarray | Sequence[ImageLike],
    *,
    named: Literal[False] = False,
    split: Split = "all",
    recipe: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> np.ndarray: ...
@overload
def embed(
    weights: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    named: Literal[True],
    split: Split = "all",
    recipe: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Features: ...
def embed(
    weights: str | Path,
    images: Any,
    *,
    named: bool = False,
    split: Split = "all",
    recipe: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> Any:
    """Return the features (n, width) float32 of images; with `named` all that the verb writes.

    weights: a run folder, a checkpoint, encoder.safetensors; or any file of weights, with the `recipe` that it is of
    where its arrays do not tell. images: (n, channels, height, width) float32, normalised already; or paths, Pillow
    images or uint8 arrays (height, width, channels), which are prepared as the recipe evaluates.
    named: images are files, folders and patterns, or one data set of which `split` is taken; the answer has `rows`,
    `files`, `labels`, `classes`, `splits` and the digest of the `model`; pictures that cannot be read are left out.
    """
    subject = find(weights, recipe, embedding=True)
    if named:
        from triport.verbs import embed as verb  # which uses this file

        words = [images] if isinstance(images, (str, Path)) else images
        return verb.of(subject, words, split, backend, device, batch)
    return ask(subject, "embed", images, backend, device, batch)


def logits(
    weights: str | Path,
    images: np.ndarray | Sequence[ImageLike],
    *,
    recipe: str | None = None,
    backend: str | None = None,
    device: str = "auto",
    batch: int = 64,
) -> np.ndarray:
    """Return a classifier's logits (n, classes) float32 of images; the arguments are those of `embed`.

    `triport.predict` gives class names and probabilities.
    """
    subject = find(weights, recipe, embedding=False)
    if not subject.has_head:
        raise UserError(f"{weights} holds an encoder without a trained head: use embed, or train a head first.")
    return ask(subject, "predict", images, backend, device, batch)


def find(weights: str | Path, recipe_name: str | None, embedding: bool) -> Subject:
    """Return the model that a path means, as the verbs find it."""
    from triport.verbs import model  # which uses what stands above this file

    return model.subject(weights, recipe_name, features_only=embedding)


def ask(
    subject: Subject,
    function: str,
    images: np.ndarray | Sequence[ImageLike],
    backend: str | None,
    device: str,
    batch: int,
) -> np.ndarray:
    """Return what the backend's learner answers, batch by batch."""
    answer: Callable[[np.ndarray], np.ndarray] = getattr(make_learner(subject, backend, device), function)
    if len(images) == 0:
        raise UserError("no images were given.")
    if isinstance(images, (str, Path)):
        raise UserError(f"images is the text '{images}': give a list of images.")
    rows = [answer(prepared(subject.recipe, images[at : at + batch])) for at in range(0, len(images), batch)]
    return np.concatenate(rows)


def make_learner(subject: Subject, backend: str | None, device: str) -> Any:
    """Return the backend's learner (core.backend.learner.Learner) of a model, in float32."""
    make, start = backend_module(backend, "learner").make, backend_module(backend, "distributed").start
    return make(
        subject.recipe, subject.arrays, processes=start(device), device=device, precision="float32", compile=False
    )


def prepared(recipe: Recipe, images: np.ndarray | Sequence[ImageLike]) -> np.ndarray:
    """Return images (n, channels, height, width) float32 as the recipe evaluates them."""
    encoder = recipe.model.encoder
    if isinstance(images, np.ndarray) and images.dtype == np.float32 and images.ndim == 4:
        wanted = (encoder.channels, *encoder.image)
        if images.shape[1:] != wanted:
            raise UserError(f"the images are {images.shape[1:]}, the model takes {wanted} (channels, height, width).")
        return images
    rows = [prepared_one(recipe, image, encoder.channels) for image in images]
    stacked = np.stack(rows)
    return np.asarray(pixels.normalise(stacked, recipe.evaluate.mean, recipe.evaluate.std))


def prepared_one(recipe: Recipe, image: ImageLike, channels: int) -> np.ndarray:
    """Return one image as uint8 (height, width, channels), cut as the recipe evaluates."""
    if isinstance(image, (str, Path)):
        image = read_image(str(image), channels)
    elif isinstance(image, Image.Image):
        image = image.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])
    array = pixels.as_array(image)
    if array.shape[2] != channels:
        raise UserError(f"an image has {array.shape[2]} channels, the model takes {channels}.")
    size = (array.shape[0], array.shape[1])
    return pixels.apply(augment.plan(recipe.evaluate, 0, rng.generator("embed"), size), array)


def backend_module(backend: str | None, name: str) -> ModuleType:
    """Import a file of a backend whose framework is installed in this interpreter, or raise UserError."""
    here = [framework for framework in environments.FRAMEWORKS if environments.is_here(framework)]
    chosen = environments.known(backend) if backend else (here or ["torch"])[0]
    if chosen not in here:
        python = environments.interpreter(chosen)
        remedy = f"run this with {python}" if python else f"triport setup {chosen}, then run this with its interpreter"
        raise UserError(f"{environments.TITLES[chosen]} is not installed in this interpreter. Remedy: {remedy}")
    return importlib.import_module(f"triport.backends.{chosen}.{name}")
