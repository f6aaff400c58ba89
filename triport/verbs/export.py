"""`triport export`: a model as ONNX, checked against its framework; or, through `convert`, for transformers or timm."""

from __future__ import annotations

import importlib
import io
import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from triport import api
from triport.core import atomic
from triport.core.errors import UserError
from triport.core.model.inventory import head_name
from triport.core.options import Parser
from triport.core.record.console import show
from triport.core.run.subject import Subject
from triport.core.selection import EVERYTHING, Selection, selected
from triport.core.spec import Recipe
from triport.environments import TITLES
from triport.verbs import model, options

To = Literal["onnx", "hf", "timm"]
OPSET = 18  # of the standard operators, which onnxruntime knows from 1.14 on
PADDLE_OPSET = 17  # the newest that paddle2onnx writes well
BOUND = 1e-5  # largest difference from the framework, relative to the largest output
LARGEST = 2_000_000_000  # bytes of weights that one ONNX file holds
BATCHES = (1, 3)  # pictures at once when the file is checked


@dataclass(frozen=True)
class Exported:
    """What was written: the file, its output's name, the operators' version, and the largest difference by batch."""

    path: Path
    output: str
    opset: int
    differences: dict[int, float]


def parser() -> Parser:
    """Return the command line's parser."""
    p = options.parser("export", "Write a model for other programs: ONNX, or a folder for transformers or timm.")
    p.add_argument("out", type=Path, metavar="OUT", help="model.onnx; a folder for hf and timm")
    p.add_argument("--to", required=True, choices=("onnx", "hf", "timm"), help="the form")
    p.add_argument(
        "--part", choices=("encoder", "classifier"), help="of ONNX: features or logits (logits of a trained classifier)"
    )
    p.add_argument("--overwrite", action="store_true", help="replace OUT")
    return p


def main(argv: Sequence[str]) -> int:
    """Export and say how far the file is from the model; returns the exit code."""
    given = parser().parse_intermixed_args(list(argv))
    if given.to != "onnx":
        report = _convert(given.model, given.out, given.to, given.recipe, given.overwrite, selected(given))
        show(report.summary() or f"{given.model} is in {given.out}")
        return 0
    backend = given.backend or "torch"
    answer = export(
        given.model,
        given.out,
        part=given.part,
        recipe=given.recipe,
        selection=selected(given),
        backend=backend,
        overwrite=given.overwrite,
    )
    note = ", ".join(f"{error:.1e} at batch {batch}" for batch, error in answer.differences.items())
    show(f"{answer.path}: images -> {answer.output}, any batch size, opset {answer.opset}")
    show(f"onnxruntime differs from {TITLES[backend]} by {note} of the largest output (allowed: {BOUND:g})")
    return 0


def export(
    weights: str | Path,
    out: str | Path,
    to: To = "onnx",
    *,
    part: Literal["encoder", "classifier"] | None = None,
    recipe: str | None = None,
    selection: Selection = EVERYTHING,
    backend: str = "torch",
    overwrite: bool = False,
) -> Any:
    """Write a model as ONNX (Exported), or as a folder for transformers ("hf") or timm (the report of `convert`).

    part: "encoder" gives features, "classifier" logits; by default logits where there is a trained head. ONNX takes
    normalised images (batch, channels, height, width) float32, and says the mean and deviation, the class names and the
    model's digest in its metadata. backend: "torch", or "paddle" through paddle2onnx. UserError where the file would be
    further than BOUND from the framework's own answers.
    """
    if to != "onnx":
        return _convert(weights, Path(out), to, recipe, overwrite, selection)
    path = options.free(options.ending(Path(out), (".onnx",), "OUT"), overwrite, "OUT")
    onnx, runtime = modules(backend)
    found = model.subject(weights, recipe, part == "encoder", selection)
    if part == "classifier" and not found.has_head:
        raise UserError(f"{found.origin} has no trained head: --part encoder, or train one with `triport linear`.")
    logits = found.has_head and part != "encoder"
    size = sum(array.nbytes for array in found.arrays.values())
    if size > LARGEST:
        raise UserError(f"{found.origin} has {size / 1e9:.1f} GB of weights, more than one ONNX file holds (2 GB).")
    learner = api.make_learner(found, backend, "cpu")
    answer = learner.predict if logits else learner.embed
    shape = (found.recipe.model.encoder.channels, *found.recipe.model.encoder.image)
    draw = np.random.Generator(np.random.Philox(0))
    images = [draw.standard_normal((batch, *shape), dtype=np.float32) for batch in BATCHES]
    wanted = [answer(given) for given in images]
    network = learner.model
    network.eval()
    if not logits:
        setattr(network, head_name(found.recipe.model.encoder), None)  # its features leave instead
    name = "logits" if logits else "features"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replaced(path) as partial:
            write = _write_torch if backend == "torch" else _write_paddle
            write(network, images[-1], name, partial)
            _finish(onnx, partial, name, _words(found, logits))
            session = runtime.InferenceSession(str(partial), providers=["CPUExecutionProvider"])
            made = [session.run([name], {"images": given})[0] for given in images]
            errors = {len(a): float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(made, wanted)}
            if not max(errors.values()) <= BOUND:
                worst = max(errors.values())
                raise UserError(
                    f"the ONNX file differs from {TITLES[backend]} by {worst:.1e}, more than {BOUND:g}: not written."
                )
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}.") from error
    return Exported(path, name, OPSET if backend == "torch" else PADDLE_OPSET, errors)


def modules(backend: str) -> tuple[ModuleType, ModuleType]:
    """Return onnx and onnxruntime; UserError with the remedy where they or the framework's exporter are missing."""
    if backend not in ("torch", "paddle"):
        raise UserError(
            f"ONNX files come from torch or paddle, not {backend}: leave out --backend; weights are the same."
        )
    api.backend_module(backend, "build")  # says what to do where the framework is not here
    exporter = "onnxscript" if backend == "torch" else "paddle2onnx"
    try:
        importlib.import_module(exporter)
        onnx, runtime = map(importlib.import_module, ("onnx", "onnxruntime"))
    except ImportError as error:
        remedy = "pip install 'triport[onnx]', or triport setup torch"
        if backend == "paddle":
            remedy = "pip install paddle2onnx onnx onnxruntime, or leave out --backend paddle"
        raise UserError(f"ONNX from {TITLES[backend]} needs {error.name}: {remedy}.") from None
    return onnx, runtime


def _write_torch(network: Any, images: np.ndarray, name: str, path: Path) -> None:
    """Let PyTorch's exporter write a file whose first dimension is free."""
    torch = importlib.import_module("torch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # of torchvision's operators, which no model here has
    torch.onnx.export(
        network,
        (torch.from_numpy(images),),
        str(path),
        input_names=["images"],
        output_names=[name],
        opset_version=OPSET,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        external_data=False,
        verbose=False,
    )


def _write_paddle(network: Any, images: np.ndarray, name: str, path: Path) -> None:
    """Let paddle2onnx write a file whose first dimension is free."""
    paddle, paddle2onnx = map(importlib.import_module, ("paddle", "paddle2onnx"))
    shape = [paddle.static.InputSpec([None, *images.shape[1:]], "float32", name="images")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        try:
            with redirect_stdout(io.StringIO()):
                paddle.jit.save(network, str(folder / "model"), input_spec=shape)
                program = next(
                    folder / f"model.{end}" for end in ("json", "pdmodel") if (folder / f"model.{end}").exists()
                )
                paddle2onnx.export(
                    str(program),
                    str(folder / "model.pdiparams"),
                    str(folder / "model.onnx"),
                    opset_version=PADDLE_OPSET,
                    optimize_tool="None",  # the default one would install packages by itself
                )
        except (SystemExit, StopIteration, RuntimeError):  # paddle2onnx ends the process where it cannot convert
            raise UserError("paddle2onnx cannot convert this model: leave out --backend paddle.") from None
        shutil.copyfile(folder / "model.onnx", path)


def _finish(onnx: Any, path: Path, name: str, words: dict[str, str]) -> None:
    """Name the output, put the words into the file's head, and let onnx check it."""
    file = onnx.load(str(path))
    (output,) = file.graph.output
    for node in file.graph.node:
        node.output[:] = [name if made == output.name else made for made in node.output]
        node.input[:] = [name if given == output.name else given for given in node.input]
    output.name = name
    used = {given for node in file.graph.node for given in node.input}
    saved = [array for array in file.graph.initializer if array.name in used]  # a runtime warns of the others
    del file.graph.initializer[:]
    file.graph.initializer.extend(saved)
    onnx.helper.set_model_props(file, words)
    onnx.checker.check_model(file)
    onnx.save(file, str(path))


def _words(found: Subject, logits: bool) -> dict[str, str]:
    recipe: Recipe = found.recipe
    words = {
        "recipe": recipe.name,
        "model": model.digest(found),
        "mean": json.dumps(recipe.evaluate.mean),
        "std": json.dumps(recipe.evaluate.std),
    }
    return {**words, "classes": json.dumps(found.classes)} if logits and found.classes else words


def _convert(weights: str | Path, out: Path, to: str, recipe: str | None, overwrite: bool, selection: Selection) -> Any:
    """Write a folder as `triport convert --to` does."""
    from triport.weights.commands.convert import convert

    options.free(out, overwrite, "OUT")  # by this command's own option, where convert would name --force
    return convert(weights, out, to=to, force=overwrite, recipe=recipe, selection=selection)
