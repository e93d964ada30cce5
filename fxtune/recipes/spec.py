"""The form of a recipe: how a tuned model is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1, strict=True)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Channels = Annotated[list[float], Field(min_length=3, max_length=3)]
Scales = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimizer(_Part):
    """The optimizer and its groups."""

    name: Literal["adamw", "sgd"] = Field(default="adamw", description="adamw, or sgd with momentum")
    lr: float = Field(gt=0, description="the learning rate at its highest")
    head_lr: float | None = Field(default=None, gt=0, description="that of the head; `lr` by default")
    weight_decay: Rate = Field(default=0.0, description="of matrices; biases, norms and scales have none")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), description="of adamw")
    eps: float = Field(default=1e-8, gt=0, description="of adamw")
    momentum: Rate = Field(default=0.9, description="of sgd")


class Schedule(_Part):
    """The learning rate over the steps."""

    shape: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="how it falls to zero behind the warm-up, or that it stays"
    )
    warmup: Rate = Field(default=0.0, description="epochs in which it rises from zero")


class Images(_Part):
    """What is done to images."""

    size: Count = Field(default=224, description="pixels of a side, as the model takes them")
    crop: Literal["random", "center", "none"] = Field(
        default="random",
        description="in training: a random part, resized (Szegedy et al., 2015); the middle; or the whole, squeezed. "
        "Tests have the middle, or with `none` the whole",
    )
    border: float = Field(
        default=8 / 7,
        ge=1,
        description="for the middle, the shorter side is first made so many times as long as `size`",
    )
    flip: bool = Field(default=True, strict=True, description="mirrored, one in two, in training")
    mean: Channels = Field(default=[0.485, 0.456, 0.406], description="of each channel, which is taken off")
    std: Scales = Field(default=[0.229, 0.224, 0.225], description="of each channel, which it is divided by")


class Texts(_Part):
    """What is done to sentences."""

    length: Count = Field(default=128, description="tokens at most; the rest is cut off")


class Captions(_Part):
    """What is done to captions."""

    dropped: float = Field(
        default=0.0, ge=0, lt=1, description="the share that is left out in training, for guidance without classifier"
    )


class Recipe(_Part):
    """A recipe for fxtune: how a tuned model is trained."""

    fxtune: Literal[1] = Field(description="the version of this form: 1")
    name: str = Field(min_length=1, description="the name of the recipe")
    about: str = Field(default="", description="one or two sentences on what it is, and its source")
    optimizer: Optimizer = Field(description="the optimizer and its groups")
    schedule: Schedule = Field(default=Schedule(), description="the learning rate over the steps")
    epochs: Count = Field(description="how many times the data are gone through")
    batch: Count = Field(description="samples of a step, over all processes")
    accumulate: Count = Field(default=1, description="in so many pieces, one after the other, to save memory")
    smoothing: float = Field(default=0.0, ge=0, lt=1, description="label smoothing")
    clip: float | None = Field(default=None, gt=0, description="the largest norm of all gradients together")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32", description="of the forward pass: bfloat16 runs it under autocast"
    )
    checkpointing: bool = Field(
        default=False, strict=True, description="compute the Blocks again in the backward, to save memory"
    )
    patience: Count | None = Field(
        default=None, description="stop when so many epochs in a row have not bettered the accuracy on `val`"
    )
    images: Images = Field(default=Images(), description="what is done to images")
    texts: Texts = Field(default=Texts(), description="what is done to sentences")
    captions: Captions = Field(default=Captions(), description="what is done to captions")
    seed: int = Field(default=0, strict=True, description="of all that is drawn: new weights, order, augmentation")
