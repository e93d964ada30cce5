"""The form of data: a source, what it needs, and what is chosen of it."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _whole(parts: dict[str, float]) -> dict[str, float]:
    if any(share <= 0 for share in parts.values()) or sum(parts.values()) > 1 + 1e-9:
        raise ValueError(f"expected shares above 0 that are at most 1 together, not {parts}")
    return parts


Parts = Annotated[dict[str, float], AfterValidator(_whole)]
Count = Annotated[int, Field(ge=1, strict=True)]


class Source(BaseModel):
    """What all sources take."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    short: ClassVar[str | None] = None
    """The field that the rest of a short form ``source/rest`` fills."""

    parts: Parts = Field(
        default={},
        description="divides the training split anew, each class alike: {train: 0.8, val: 0.1, test: 0.1}; "
        "where `train` is not named, it is the rest",
    )
    choose: list[str] = Field(
        default=[], description="only samples of these classes, which are then counted in this order; all by default"
    )
    shots: Count | None = Field(default=None, description="so many training samples of each class, drawn by `seed`")
    limit: dict[str, Count] = Field(
        default={}, description="at most so many samples of a split, each class alike: {train: 1500}"
    )
    seed: int = Field(default=0, strict=True, description="of all that is drawn: parts, shots, limits")
    tests: dict[str, str | dict[str, Any]] = Field(
        default={},
        description="further data to be tested on, by name, as a source each: {sketch: images/sketch}. Classes are "
        "matched by name; where they have fewer, answers are chosen among those",
    )


class Images(Source):
    """A folder for each split, in it a folder for each class, in it images."""

    short: ClassVar[str | None] = "path"

    source: Literal["images"]
    path: str = Field(description="the folder that holds train/CLASS/IMAGE, and val/ and test/ if there are such")


class Vtab(Source):
    """The folder of one task of VTAB-1K."""

    short: ClassVar[str | None] = "path"

    source: Literal["vtab"]
    path: str = Field(description="the folder with train800.txt, val200.txt, train800val200.txt, test.txt and images")
    train: Literal["train800", "train800val200"] = Field(
        default="train800", description="what is trained on; with all 1,000 there is no `val`"
    )


class Vision(Source):
    """A class of torchvision.datasets, on files that are already there."""

    short: ClassVar[str | None] = "dataset"

    source: Literal["torchvision"]
    dataset: str = Field(description="the name of the class: CIFAR10, Flowers102, ...")
    path: str = Field(default=".data", description="its `root`; nothing is downloaded")


class Saved(Source):
    """What the library `datasets` saved with `save_to_disk`."""

    short: ClassVar[str | None] = "path"

    source: Literal["datasets"]
    path: str = Field(description="the folder")
    image: str | None = Field(default=None, description="the column of images")
    texts: list[str] = Field(default=[], max_length=2, description="the columns of one or two sentences, or a caption")
    label: str = Field(default="label", description="the column of classes")


class Table(Source):
    """Text with labels, in CSV (with a header) or JSON lines."""

    short: ClassVar[str | None] = "path"

    source: Literal["table"]
    path: str = Field(
        description="a folder with train.csv or train.jsonl, and val and test if there are such; or one file"
    )
    texts: list[str] = Field(
        default=["text"], min_length=1, max_length=2, description="the columns of one or two sentences"
    )
    label: str = Field(default="label", description="the column of classes: names or numbers")
    classes: list[str] = Field(
        default=[], description="the classes in the order of the model's outputs; by default sorted"
    )


class Captions(Source):
    """Images with captions, as diffusers' and datasets' image folders have them."""

    short: ClassVar[str | None] = "path"

    source: Literal["captions"]
    path: str = Field(description="the folder: metadata.jsonl with file_name and text, or a .txt beside each image")
    caption: str | None = Field(
        default=None, description="one caption for all images, as DreamBooth has it: 'a photo of sks dog'"
    )


class Digits(Source):
    """scikit-learn's 1,797 handwritten digits, 8 x 8."""

    source: Literal["digits"]
    parts: Parts = Field(default={"train": 0.6, "val": 0.2, "test": 0.2}, description="how they are divided")


class Reviews(Source):
    """Sentences of film reviews, rated by people (Hutto and Gilbert, 2014)."""

    short: ClassVar[str | None] = "path"

    source: Literal["reviews"]
    path: str = Field(default=".data", description="the folder of movieReviewSnippets_GroundTruth.txt")
    parts: Parts = Field(default={"train": 0.7, "val": 0.1, "test": 0.2}, description="how they are divided")


class Sprites(Source):
    """dSprites (Matthey et al., 2017), drawn here; split and labelled as in VTAB-1K."""

    short: ClassVar[str | None] = "label"

    source: Literal["dsprites"]
    label: Literal["location", "orientation"] = Field(
        default="location", description="what is told, in 16 classes: where it stands from left to right, or its turn"
    )
    count: dict[str, Count] = Field(
        default={"train": 800, "val": 200, "test": 1000}, description="samples of each split"
    )


KINDS: dict[str, type[Source]] = {
    "images": Images,
    "vtab": Vtab,
    "torchvision": Vision,
    "datasets": Saved,
    "table": Table,
    "captions": Captions,
    "digits": Digits,
    "reviews": Reviews,
    "dsprites": Sprites,
}
"""Every source by the word that names it."""
