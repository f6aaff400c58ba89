"""What all kinds of datasets share: name, labels, classes, and remarks about what was left out."""

from __future__ import annotations

from collections.abc import Sequence

from triport.core.data.sample.decode import Decoding, Source
from triport.core.data.sample.labels import Labels


class Samples:
    """Base of the readers' datasets; the images are theirs."""

    def __init__(self, name: str, labels: Labels, decoding: Decoding, remarks: Sequence[str] = ()) -> None:
        self.name, self.labels, self.classes = name, labels.numbers, labels.classes
        self.fault = labels.fault  # why a classifier cannot have the labels, where the source has faulty ones
        self.decoding, self.channels = decoding, decoding.channels
        self.remarks = tuple(remarks)  # one line each, about what was left out or is odd

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Source:
        """Return image `index`, mode RGB or L or uint8 (height, width, channels). May raise BrokenImage."""
        raise NotImplementedError

    def label(self, index: int) -> int:
        """Return the class of image `index`, or -1 where nobody knows it."""
        return int(self.labels[index])

    def where(self, index: int) -> str:
        """Return what names image `index`: a path, or a place in a file."""
        return f"{self.name}[{index}]"
