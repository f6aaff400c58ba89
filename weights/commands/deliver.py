"""Arrays written, read back, compared, and only then put in place, with a note of where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from triport.core.atomic import part_of
from triport.core.errors import UserError
from triport.weights.arrays import Lazy, Tree, raw
from triport.weights.commands.read_back import Ahead, same_bytes
from triport.weights.files import files
from triport.weights.files.oneflow_writer import FILES
from triport.weights.hub.folder import NAMES, WEIGHTS
from triport.weights.model import facts, optimizer_state, provenance
from triport.weights.model.opening import Opened
from triport.weights.model.report import Report
from triport.weights.writing import free, whole_files, whole_folder, whole_place


@dataclass
class Written:
    """What is to be written where."""

    path: Path
    form: str
    tree: Tree
    optimizer: dict[str, Lazy]  # this project's own optimiser state, for a file of its own
    force: bool
    texts: Mapping[str, str] = field(default_factory=dict)  # of a folder, beside the weights

    @property
    def is_folder(self) -> bool:
        """Whether the framework's own form is a folder."""
        return self.form in ("oneflow", "libai")

    @property
    def is_sharded(self) -> bool:
        """Whether it is an index and shards beside it."""
        return self.path.name.endswith(".json")


def deliver(what: Written, opened: Opened, report: Report) -> None:
    """Write what is meant, hold what is read back against it, and let it take its path.

    The source's SHA-256 is computed meanwhile, beside the waiting for the disk. UserError, and nothing left behind,
    where the target or a file beside it exists, the disk refuses, or other bits come back.
    """
    if what.form == "folder":
        _deliver_folder(what, opened, report)
        return
    free(what.path, what.force, folder=what.is_folder)
    with ExitStack() as stack:  # all take their paths together, the target first
        note = optimizer = None
        if what.form != "safetensors":
            note = stack.enter_context(whole_place(provenance.path_beside(what.path), what.force))
        if what.optimizer:
            optimizer = stack.enter_context(whole_place(optimizer_state.path_beside(what.path), what.force))
        place = stack.enter_context(_place(what))
        hashing = stack.enter_context(ThreadPoolExecutor(1))
        source = hashing.submit(provenance.digest, opened.file.path)
        try:
            own = _write(place, what, report, source)
            if optimizer is not None:
                files.write(optimizer, what.optimizer, "safetensors")
            if note is not None:
                provenance.write_note(note, report.provenance, place, own)
        except UserError as fault:
            line = str(fault).replace(str(place), str(what.path))
            line = line.replace(str(optimizer), str(optimizer_state.path_beside(what.path)))
            raise UserError(line.replace(str(place.parent), str(what.path.parent))) from None  # shards stand beside it


@contextmanager
def _place(what: Written) -> Iterator[Path]:
    """Where it is written first, under a name that nobody has; it takes its path when the block ends well."""
    if what.is_folder:
        with whole_folder(what.path, what.force, FILES) as folder:
            apart = part_of(folder / "whole")  # in which nothing has the name of one of its own parts
            apart.mkdir()
            place = apart / what.path.name  # by which LiBai's form is known
            yield place
            for part in place.iterdir():
                part.rename(folder / part.name)
            place.rmdir()
            apart.rmdir()
    elif what.is_sharded:
        with whole_files(what.path, what.force) as place:
            yield place
    else:
        with whole_place(what.path, what.force) as place:
            yield place


def _deliver_folder(what: Written, opened: Opened, report: Report) -> None:
    """The same for a folder of transformers or timm: weights, read back, and the texts beside them."""
    with whole_folder(what.path, what.force, NAMES) as place, ThreadPoolExecutor(1) as hashing:
        source = hashing.submit(provenance.digest, opened.file.path)
        inner = replace(what, path=place / WEIGHTS, form="safetensors")
        try:
            _write(place / WEIGHTS, inner, report, source)
        except UserError as fault:
            raise UserError(str(fault).replace(str(place), str(what.path))) from None
        for name, text in what.texts.items():
            (place / name).write_text(text, encoding="utf-8")


def _write(place: Path, what: Written, report: Report, source: Future[str]) -> str:
    """Write, read back, compare; the CRC-32 of what was written, or "" where it notes its provenance itself."""
    beside = what.form != "safetensors"
    streamed = what.form in files.STREAMED
    with Ahead(what.tree, checksums=streamed or what.is_folder) as meant:
        own = provenance.Checksum(meant.checksum_at) if streamed else None
        # The header stands before the arrays: the digest is filled in when it is known, unless shards repeat it.
        later = not beside and not what.is_sharded
        if not beside:
            report.provenance["source_sha256"] = provenance.UNKNOWN_DIGEST if later else source.result()
        files.write(place, meant.tree, what.form, None if beside else _metadata(report), what.force, own)
        found = files.read(place).tree
        meant.compare(found, what.path)
        report.provenance["source_sha256"] = source.result()
        if later:
            provenance.fill_in(place, source.result())
        if not beside:
            return ""
        return own.hexdigest() if own else provenance.checksum(place, meant.checksums_of(found))


def _metadata(report: Report) -> dict[str, str]:
    return {facts.KEY: provenance.text(report.provenance), "format": "pt"}  # transformers asks for the format


def same_bits(first: Lazy, second: Lazy) -> bool:
    """Whether two arrays hold the same bytes."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return same_bytes(raw(first.read()), raw(second.read()))
