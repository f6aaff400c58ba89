"""`triport data`: what lies at a path, as a run would read it, and a page of its images as the network sees them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from triport.core.data.readers.archives import checksum_line, is_archive, unpack
from triport.core.data.sample.decode import quiet_pillow
from triport.core.data.survey import SplitSurvey, Survey, survey
from triport.core.errors import UserError
from triport.core.options import Parser, checked_range, pixel_options, whole_number
from triport.core.record import page
from triport.core.record.console import show
from triport.core.spec import Recipe, recipe
from triport.samples import sample_figures, view_figures

KINDS = {
    "folder": "folders of classes",
    "flat": "a folder of images without classes",
    "list": "a list of image files",
    "idx": "idx files, as MNIST's",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "archive": "an archive of CIFAR, read in place",
    "flowers": "Oxford Flowers-102",
    "pets": "Oxford-IIIT Pets",
    "npz": "an .npz file of arrays",
    "npy": ".npy arrays, read from the disk as needed",
    "pages": "a TIFF whose pages are the images",
    "shards": "WebDataset .tar shards",
    "parquet": "Hugging Face parquet files",
}
CLASSES = 20  # named with their counts; `--all` names each
FAULTS = 10  # broken images named


def main(argv: Sequence[str]) -> int:
    """Describe a dataset, unpack archives, or draw a page; returns the exit code."""
    p = parser()
    options = p.parse_args(list(argv))
    quiet_pillow()
    paths, overrides = (
        [word for word in options.words if not _is_override(word)],
        list(filter(_is_override, options.words)),
    )
    if options.unpack:
        if not paths:
            raise UserError("name the archives to unpack. See triport data --help.")
        for line in unpack([Path(path) for path in paths], options.unpack):
            show(line)
        paths = [str(options.unpack)]
    if len(paths) != 1:
        raise UserError("name one path: triport data PATH. Several are for --unpack DIR.")
    if overrides and options.recipe is None:
        raise UserError(f"'{overrides[0]}' changes a recipe: name it with --recipe.")
    chosen = recipe.load(options.recipe, overrides) if options.recipe else None
    channels = chosen.model.encoder.channels if chosen else None
    reading = {
        "max_pixels": options.max_pixels,
        "exif": options.exif,
        "value_range": checked_range(options.value_range),
    }
    found = survey(paths[0], channels, 0 if options.all else options.look, **reading)
    describe(found, options.all)
    if options.page:
        written = page.write(options.page, render(found, chosen), f"Make space, then: triport data {paths[0]}")
        show(str(written))
    return 0


def parser() -> Parser:
    """Return the command's options."""
    p = Parser(
        prog="triport data",
        description="Say what lies at PATH: its kind, splits, classes with counts, sizes, channels and files that "
        "cannot be read. With --page also draw samples, and with --recipe the augmented views a network would see.",
        allow_abbrev=False,
    )
    p.add_argument(
        "words", nargs="+", metavar="PATH", help="a data set as --data takes it; with --unpack, its archives"
    )
    p.add_argument(
        "--recipe", metavar="NAME", help="read and augment as this recipe does; key=value overrides may follow"
    )
    p.add_argument("--page", type=Path, metavar="FILE.html", help="draw samples and augmented views on a page")
    p.add_argument("--look", type=whole_number, default=200, metavar="N", help="images to decode of each split (200)")
    p.add_argument("--all", action="store_true", help="decode every image, and name every class")
    p.add_argument("--unpack", type=Path, metavar="DIR", help="unpack archives and copy files into the new folder DIR")
    pixel_options(p)
    p.add_argument("--traceback", action="store_true", help="show where an error was raised")
    return p


def _is_override(word: str) -> bool:
    key, equals, _ = word.partition("=")
    return bool(equals) and "/" not in key and not Path(word).exists()


# ---------------------------------------------------------------- in words
def describe(found: Survey, everything: bool) -> None:
    """Print what was found."""

    def say(word: str, text: str) -> None:
        show(f"{word:<10}{text}")

    say("kind", f"{KINDS[found.kind]} ({found.kind})")
    path = Path(found.where)
    if path.is_file() and not is_archive(path) and (line := checksum_line(path)):
        say("file", line)
    for part in found.splits:
        say(part.split, summary(part))
        say("", f"height x width {part.size_line()}; read with {channels(part)}")
        if part.dataset.classes:
            say("", f"classes: {class_line(part, len(part.counts) if everything else CLASSES)}")
        for fault in faults(part):
            say("", fault)
    for split, why in found.missing.items():
        say(split, f"not there: {why}")
    for remark in found.remarks:
        say("note", remark)


def summary(part: SplitSurvey) -> str:
    """Return how many images of how many classes a split has."""
    classes = len(part.dataset.classes)
    known = f"{classes:,} classes" if classes else "no labels"
    return f"{len(part.dataset):,} images, {known} ({part.dataset.name})"


def channels(part: SplitSurvey) -> str:
    """Return the channels that images have once they are read."""
    return ", ".join(f"{count} channel{'s' * (count > 1)}" for count in sorted(part.channels)) or "no channels"


def class_line(part: SplitSurvey, most: int) -> str:
    """Return the classes with their counts, the first `most` of them."""
    names = part.dataset.classes
    shown = ", ".join(f"{name} {count}" for name, count in zip(names[:most], part.counts[:most], strict=True))
    if len(names) <= most:
        return shown
    return f"{shown}, ... ({min(part.counts):,} to {max(part.counts):,} images each; --all names every class)"


def faults(part: SplitSurvey) -> list[str]:
    """Return lines about images that cannot be used."""
    looked = f"of {len(part.looked):,} looked at" + (
        " (--all looks at each)" if len(part.looked) < len(part.dataset) else ""
    )
    lines = [f"{len(part.broken)} broken {looked}"]
    lines += [f"  {why}" for why in list(part.broken.values())[:FAULTS]]
    if len(part.broken) > FAULTS:
        lines.append(f"  and {len(part.broken) - FAULTS} more")
    if part.large:
        most = max(part.large.values())
        lines.append(f"{len(part.large)} have too many pixels, {most} at most: --max-pixels {most} lets them in")
    return lines


# ---------------------------------------------------------------- as a page
def render(found: Survey, chosen: Recipe | None) -> str:
    """Return the page: a table of the splits, samples of each, and augmented views of the training images."""
    bad = sum(len(part.broken) + len(part.large) for part in found.splits)
    looked = sum(len(part.looked) for part in found.splits)
    verdict = (
        f"{bad} of {looked} images looked at cannot be read." if bad else f"All {looked} images looked at can be read."
    )
    rows = [
        (
            part.split,
            f"{len(part.dataset):,}",
            f"{len(part.dataset.classes):,}",
            part.size_line(),
            channels(part),
            str(len(part.broken)),
        )
        for part in found.splits
    ]
    head = ("split", "images", "classes", "height x width", "channels", "broken")
    notes = [*found.remarks, *(line for part in found.splits for line in part.broken.values())][:40]
    body = [
        page.header(f"Data: {found.where}", "note" if bad else "good", verdict, [KINDS[found.kind]]),
        page.section("Splits", page.table(head, rows)),
        page.section("Notes", page.table((), [(note,) for note in notes])),
        *(
            page.section(f"Samples: {part.split}", page.charts(sample_figures(part.dataset), "small"))
            for part in found.splits
        ),
    ]
    if chosen is not None:
        views = view_figures(found.splits[0].dataset, chosen)
        body.append(page.section(f"Augmented views: {chosen.name}", page.charts(views)))
        body.append(
            page.section("In evaluation", page.charts(view_figures(found.splits[-1].dataset, chosen, train=False)))
        )
    counts = [(name, *(str(part.counts[index]) if index < len(part.counts) else "" for part in found.splits))
              for index, name in enumerate(found.splits[0].dataset.classes[:1000])]  # fmt: skip
    body.append(page.section("Classes", page.table(("class", *(part.split for part in found.splits)), counts)))
    return page.document(f"Data: {found.where}", body)
