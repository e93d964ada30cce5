"""The command line: ``fxtune methods``, ``fxtune inspect MODEL``, ``fxtune memory MODEL``, ``fxtune verify MODEL``,
``fxtune search FUNCTION``, ``fxtune tune MODEL``, ``fxtune eval MODEL``,
``fxtune sample PIPELINE``, ``fxtune sweep FILE``,
``fxtune recipes``, ``fxtune schema``.

Nothing heavy is imported at the top: ``fxtune --help`` and ``fxtune methods`` run without torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

import fxtune
from fxtune.errors import DataError, FxtuneError, SourceError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

_MODEL_HELP = (
    "timm/NAME, transformers/PATH, diffusers/PATH, package/NAME (weights that a Python package ships) or module:factory"
)


def main() -> None:
    """Entry point of the ``fxtune`` command: an error is told in words and ends it with status 1."""
    try:
        app()
    except FxtuneError as error:
        _complain(error)
        sys.exit(1)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    """Parameter-efficient fine-tuning by rewriting a model's dataflow graph."""
    if version:
        print(fxtune.__version__)
        raise typer.Exit


@app.command()
def methods(
    count: Annotated[
        str | None, typer.Option("--count", help=f"Tell how many weights each trains on a model: {_MODEL_HELP}.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Module path of the head, where no model card knows it.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Put on a new head for so many classes.")] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe", help="Try each on a small model of a family (vit, bert, resnet, ...); may be repeated."
        ),
    ] = None,
) -> None:
    """List the methods that fxtune ships, each a rule set.

    With --count, the weights that each would train; with --probe, what each can do, found by trying, in Markdown.
    """
    if probe:
        from fxtune.testing import probe_catalogue

        print(probe_catalogue(probe))
        return
    if count is not None:
        sys.path.insert(0, str(Path.cwd()))
        from fxtune import api

        Console().print(api.methods(count, head=head, num_classes=num_classes))
        return
    if head is not None or num_classes is not None:
        raise typer.BadParameter("--head and --num-classes say how weights are counted: add --count MODEL")
    from fxtune.rules import shipped

    table = Table("name", "inserts", "about", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for rule_set in shipped():
        inserted = [f"{rule.tuner} at {rule.at}" for rule in rule_set.rules]
        inserts = "\n".join([*inserted, *(["a bypass"] if rule_set.bypass else [])]) or "nothing"
        table.add_row(Text(rule_set.name, style="bold cyan"), inserts, Text(rule_set.about.partition(". ")[0]))
    Console().print(table)


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP, show_default=False)],
    rules: Annotated[
        list[str] | None, typer.Option("--rules", "-r", help="A shipped rule set or a rule file; may be repeated.")
    ] = None,
    head: Annotated[str | None, typer.Option(help="Module path of the head, where no model card knows it.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Put on a new head for so many classes.")] = None,
) -> None:
    """Show where tuners can go on MODEL, and with --rules where they would go and how many weights would train.

    The model is built without its weights, so a large one costs nothing.
    """
    from fxtune import names

    sys.path.insert(0, str(Path.cwd()))  # module:factory means a module beside the user, as with `python -m`
    built = names.resolve(model, meta=True)
    from fxtune import api

    Console().print(api.inspect(built, rules=rules, head=head, num_classes=num_classes))


@app.command()
def memory(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP, show_default=False)],
    rules: Annotated[
        list[str] | None, typer.Option("--rules", "-r", help="A shipped rule set or a rule file; may be repeated.")
    ] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Samples a step; by default those of an example.")] = None,
    optimizer: Annotated[str, typer.Option(help="adamw, adam, sgd or momentum.")] = "adamw",
    device: Annotated[str, typer.Option(help="cpu, or cuda on a machine that has it.")] = "cpu",
    autocast: Annotated[str | None, typer.Option(help="bfloat16 or float16, for the forward.")] = None,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Compute the Blocks again in the backward.")
    ] = False,
    head: Annotated[str | None, typer.Option(help="Module path of the head, where no model card knows it.")] = None,
    num_classes: Annotated[int | None, typer.Option(min=1, help="Put on a new head for so many classes.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, in bytes, instead of a table.")] = False,
) -> None:
    """Tell what training MODEL takes: weights, gradients, optimizer state, bytes saved for backward, peak.

    Full fine-tuning, linear probing, LoRA and the rules, side by side. Nothing is trained and no weights are needed.
    """
    sys.path.insert(0, str(Path.cwd()))
    from fxtune import accounting

    report = accounting.memory(
        model,
        rules,
        batch=batch,
        optimizer=optimizer,
        device=device,
        autocast=autocast,
        checkpointing=checkpointing,
        head=head,
        num_classes=num_classes,
    )
    if as_json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        Console().print(report)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP, show_default=False)],
    rules: Annotated[
        list[str], typer.Option("--rules", "-r", help="A shipped rule set or a rule file; may be repeated.")
    ],
    examples: Annotated[int, typer.Option(min=1, help="How many random weights and inputs to compare with.")] = 20,
    seed: Annotated[int, typer.Option(help="From which they are drawn.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Save the certificate as JSON.", show_default=False)] = None,
) -> None:
    """Show that the original and the unbound form of rules compute the same on MODEL.

    The model is built without its weights: they are drawn. Ends with status 1 where the forms disagree, and then prints
    the smallest failing example.
    """
    sys.path.insert(0, str(Path.cwd()))
    from fxtune import verifying

    certificate = verifying.verify(model, rules, examples=examples, seed=seed)
    Console().print(certificate)
    if out is not None:
        certificate.save(out)
    if certificate.breach is not None:
        print(certificate.breach, file=sys.stderr)
        raise typer.Exit(1)


@app.command()
def search(
    function: Annotated[
        str,
        typer.Argument(
            help="module:function, which returns a trained supernet and a score function.", show_default=False
        ),
    ],
    budget: Annotated[int, typer.Option(min=0, help="The most weights that the tuners may have in all.")],
    out: Annotated[Path, typer.Option(help="Folder for the history and the sub-network that is found.")],
    population: Annotated[int, typer.Option(min=1, help="Candidates in a generation.")] = 50,
    generations: Annotated[int, typer.Option(min=1, help="How many, the first, random one included.")] = 20,
    parents: Annotated[int, typer.Option(min=1, help="How many of the best the next ones come from.")] = 10,
    mutation: Annotated[float, typer.Option(min=0, max=1, help="Probability that a size is drawn anew.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
) -> None:
    """Find the best sizes of a supernet's tuners within a budget of weights, by evolution.

    FUNCTION takes nothing and returns a pair: the trained supernet, and a function that is given a tuned model and
    returns its score; more is better. A search that was killed goes on where it was: give the same command again.
    """
    sys.path.insert(0, str(Path.cwd()))
    from fxtune import searching

    supernet, score = searching.asked_of(function)
    found = searching.search(
        supernet,
        score,
        budget=budget,
        population=population,
        generations=generations,
        parents=parents,
        mutation=mutation,
        seed=seed,
        folder=out,
    )
    print(f"{found}\nsaved in {out}")


_DATA_HELP = (
    "SOURCE/PATH (images/birds, table/sst2, captions/dog, vtab/dtd, datasets/PATH, torchvision/CLASS), digits, "
    "reviews, dsprites, or a YAML file."
)


@app.command()
def tune(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP, show_default=False)],
    rules: Annotated[
        list[str], typer.Option("--rules", "-r", help="A shipped rule set or a rule file; may be repeated.")
    ],
    data: Annotated[str, typer.Option("--data", "-d", help=_DATA_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for the trained model, its state and its metrics.")],
    recipe: Annotated[
        str | None,
        typer.Option(help="A shipped recipe (`fxtune recipes`) or a recipe file; else the data's usual one."),
    ] = None,
    change: Annotated[
        list[str] | None, typer.Option("--set", help="Change the recipe: epochs=10, optimizer.lr=0.005, ...")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer, for sentences; by default the model's own.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that load data.")] = 0,
    shard: Annotated[
        bool, typer.Option("--shard", help="Several processes part the weights among them, Block by Block (FSDP2).")
    ] = False,
) -> None:
    """Train MODEL on data by rules and a recipe, and test it.

    Give the same command again after a kill: it goes on where it was. Under `accelerate launch -m fxtune tune ...`
    several processes share the work.
    """
    sys.path.insert(0, str(Path.cwd()))
    from fxtune import training
    from fxtune.data import load_data

    known = load_data(data)
    words = training.tokenizer_of(tokenizer or model) if known.kind == "texts" else None
    run = training.tune(
        model,
        known,
        rules[0] if len(rules) == 1 else rules,
        out=out,
        recipe=recipe,
        settings=_settings(change or []),
        tokenizer=words,
        workers=workers,
        shard=shard,
    )
    if training.accelerator().is_main_process:
        print(f"{run}\nsaved in {out}")


@app.command("eval")
def evaluate(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP, show_default=False)],
    checkpoint: Annotated[Path, typer.Argument(help="What `fxtune tune` left in OUT/tuned.", show_default=False)],
    data: Annotated[str, typer.Option("--data", "-d", help=_DATA_HELP)],
    split: Annotated[str, typer.Option(help="Which split of theirs.")] = "test",
    recipe: Annotated[
        str | None, typer.Option(help="The recipe that it was trained by, if OUT/run.json does not tell.")
    ] = None,
    change: Annotated[list[str] | None, typer.Option("--set", help="Change the recipe: images.size=96, ...")] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Folder of the tokenizer, for sentences; by default the model's own.")
    ] = None,
) -> None:
    """Tell the accuracy of a tuned MODEL on a split of data."""
    sys.path.insert(0, str(Path.cwd()))
    from fxtune import api, names, training
    from fxtune.data import load_data
    from fxtune.recipes import recipe_for

    known, told = load_data(data), training.told_beside(checkpoint)
    if told is not None and told["classes"] != list(known.classes):
        raise DataError(
            "these data have other classes than those that the model was trained on",
            found=f"{', '.join(known.classes[:10])}; trained on {', '.join(told['classes'][:10])}",
            where=str(checkpoint),
            fix="give the data that it was trained on, with these as `tests: {NAME: SOURCE/PATH}`",
        )
    how = recipe_for(known.kind, recipe or (told["recipe"] if told else None), _settings(change or []))
    words = training.tokenizer_of(tokenizer or model) if known.kind == "texts" else None
    tuned = api.load(names.resolve(model, classifies=known.kind), checkpoint).to(training.accelerator().device)
    print(f"{split}: {training.evaluate(tuned, known, split=split, recipe=how, tokenizer=words):.2%}")


@app.command()
def sample(
    pipeline: Annotated[
        str, typer.Argument(help="diffusers/PATH of a folder that `save_pretrained` wrote.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the images.")],
    caption: Annotated[list[str], typer.Option("--caption", "-c", help="What is drawn; may be repeated.")],
    tuned: Annotated[
        Path | None, typer.Option(help="What `fxtune tune` left in OUT/tuned; none for the plain model.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images of each caption.")] = 1,
    steps: Annotated[int, typer.Option(min=1, help="Of the sampler.")] = 50,
    guidance: Annotated[float, typer.Option(help="How much the caption is exaggerated.")] = 7.5,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 1,
) -> None:
    """Draw images with PIPELINE, tuned or not."""
    from fxtune import api, names, sampling
    from fxtune.training import accelerator, denoised, with_model

    made = names.pipeline(pipeline)
    if tuned is not None:
        made = with_model(made, api.load(made.components[denoised(made)], tuned))
    made = made.to(accelerator().device)
    captions = [each for each in caption for _ in range(count)]
    files = sampling.sample(made, captions, out, steps=steps, guidance=guidance, seed=seed, batch=batch)
    print(f"{len(files)} images in {out}")


@app.command()
def sweep(
    file: Annotated[
        str, typer.Argument(help="A sweep file (model, data, recipe, rules, seeds, grid), or few_shot, domains.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the trainings, the table and the plots.")],
    model: Annotated[str | None, typer.Option(help="In the place of the file's.")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="In the place of the file's.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="How many train at a time; by default one a processor.")
    ] = None,
) -> None:
    """Train by every rule set, seed and setting that FILE names, and print what each comes to.

    Give the same command again after a kill: what has ended is not done again.
    """
    sys.path.insert(0, str(Path.cwd()))
    from fxtune import sweeping

    Console().print(sweeping.sweep(file, out, model=model, data=data, processes=processes))
    print(f"saved in {out}")


@app.command()
def recipes() -> None:
    """List the recipes that fxtune ships."""
    from fxtune.recipes import shipped_recipes

    table = Table("name", "about", box=None, header_style="bold", padding=(0, 2, 0, 0))
    for recipe in shipped_recipes():
        table.add_row(Text(recipe.name, style="bold cyan"), Text(recipe.about))
    Console().print(table)


@app.command()
def schema() -> None:
    """Print the JSON Schema of rule files, for editors."""
    from fxtune.rules import schema

    print(json.dumps(schema(), indent=2))


def _settings(changes: list[str]) -> dict[str, object]:
    """``optimizer.lr=0.005`` as a name and a value."""
    from fxtune.source import parse

    found: dict[str, object] = {}
    for change in changes:
        name, equals, value = change.partition("=")
        if not name or not equals:
            raise SourceError(f"--set {change!r} changes nothing", fix="write NAME=VALUE, as in optimizer.lr=0.005")
        found[name] = parse(value, f"--set {name}").data
    return found


def _complain(error: FxtuneError) -> None:
    """A panel on a terminal; plain text in a pipe or a log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return
    lines = Text(error.asked, style="bold")
    for label, text in (("found", error.found), ("where", error.where), ("do", error.fix)):
        if text:
            lines.append(f"\n{label:>6}  ", style="dim").append(text, style="not bold")
    console.print(Panel(lines, title=type(error).__name__, title_align="left", border_style="red"))
