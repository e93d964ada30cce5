"""TunedModel: the model that `apply` returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from fxtune.caching import FeatureCache, SplitBatch, cache_features
from fxtune.errors import CheckpointError, InputError, UnsupportedModelError
from fxtune.interchange import Format, check_format
from fxtune.planning import Folding, Place
from fxtune.saving import Backbone, Made, parts_of, weights_of, write
from fxtune.splitting import Features
from fxtune.tracing import Region
from fxtune.tuned.attributes import attribute_of_original, tuned_class
from fxtune.tuned.checkpointing import CheckpointingNames
from fxtune.tuned.copying import copied_state, dump_state, load_state
from fxtune.tuned.exporting import save_as_diffusers, save_as_peft
from fxtune.tuned.gates import gates, prompt_rows
from fxtune.tuned.gradients import GradientReport, gradient_report
from fxtune.tuned.groups import parameter_groups
from fxtune.tuned.guard import guarded, run
from fxtune.tuned.halves import check_bypass, split_for, split_of
from fxtune.tuned.hooks import refuse_dead_hooks
from fxtune.tuned.loader import loaded
from fxtune.tuned.merging import merged, unmerged
from fxtune.tuned.observing import RUN_HOOKS
from fxtune.tuned.ownership import apply_once, make_private, set_trainable
from fxtune.tuned.quantised import check_loadable, check_trainable
from fxtune.tuned.report import Report
from fxtune.tuned.sets import add_set, check_on, set_named, without_tuners
from fxtune.tuned.stored import own_tensors
from fxtune.tuned.tuning import Tuning
from fxtune.wrapped import same_numbers

_ROOT_DICTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class TunedModel(CheckpointingNames, nn.Module):
    """A model with tuners in its graph. It is called like the original, is an instance of its class, and shares its
    weights.

    The submodules are those of the first captured graph (`graph_module`): a rewritten module of the original is a
    Region at the same path, so ``tuned.blocks[0]`` can be hooked, checkpointed, compiled or sharded. Inputs that no
    captured graph takes (other optional inputs, another fixed size) are captured when first seen, with the same
    tuners.

    Frozen weights lie in the original's memory and must stay unwritten: what trains has memory of its own.
    `.to(device)` and `.to(dtype)` move the tuned model only; the original stays where it is, so from then on both
    hold their own weights.

    Args:
        original: the user's model, which is kept for `strip` and never touched (but see `inplace`).
        twin: its `structural_twin`, with the new head if there is one; further graphs are captured from it.
        graph: the rewritten root Region of the first capture. Tuners stand in a child `tuners` of the Region that
            runs them.
        called: the paths of the modules that the captured forward called (`observed_capture` gives them).
        rewrite: carries out the same plan on a further capture of the twin, and returns its rewritten root. Tuners
            that it makes give way to the first graph's, by path. It must be picklable and deep-copyable.
        trains: the state_dict names of all parameters that train: tuners' and, if rules say so, the original's.
        head: the module path of the head, for `parameter_groups`.
        blocks: the module paths of the Blocks, for gradient checkpointing.
        batchnorm: ``frozen`` keeps running statistics as they are; ``track`` lets private copies of them move.
        inplace: train original weights in the original's memory instead of private copies.
        made: how it came to be; without it, it can be neither saved nor merged.
        tuners: where each tuner stands, by its module path.
        folding: which of them can go into weights.

    Raises:
        PlanError: `trains` names a parameter that does not exist.
    """

    # All state in one attribute, so that no name of the original's is hidden by it.
    _fxtune: Tuning

    def __new__(cls, original: nn.Module, *_: Any, **__: Any) -> TunedModel:
        made: TunedModel = object.__new__(tuned_class(TunedModel, type(original)))  # type: ignore[assignment]
        return made

    def __init__(
        self,
        original: nn.Module,
        twin: nn.Module,
        graph: Region,
        *,
        called: Iterable[str],
        rewrite: Callable[[Region], Region],
        trains: Iterable[str],
        report: Report,
        head: str | None = None,
        blocks: Iterable[str] = (),
        batchnorm: Literal["frozen", "track"] = "frozen",
        inplace: bool = False,
        made: Made | None = None,
        tuners: Mapping[str, Place] | None = None,
        folding: Folding | None = None,
    ) -> None:
        trains = list(trains)
        state = Tuning(
            original,
            twin,
            {"forward": [graph]},
            rewrite,
            head,
            tuple(blocks),
            report,
            batchnorm,
            made,
            tuners or {},
            folding or Folding(),
        )
        set_trainable(graph, trains)
        if not inplace:
            make_private(original, state.trees(), lambda _, tensor: tensor.requires_grad)
        state.settle(graph)
        refuse_dead_hooks(graph, called)
        _assemble(self, state)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return run(self._fxtune, "forward", args, kwargs)

    # What it is

    @property
    def graph_module(self) -> Region:
        """The first captured graph: ``print(tuned.graph_module.code)``."""
        return self._fxtune.first

    @property
    def trainable(self) -> list[str]:
        """The names of the parameters that train."""
        return [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    def report(self) -> Report:
        """Where each rule matched, what nearly matched and why not, and the weights added. Print it."""
        return self._fxtune.report.counted(*_counts(self))

    def gradient_report(self) -> GradientReport:
        """Which weights a gradient can reach, as the graph states it: none of the trunk beside a bypass. Print it."""
        return gradient_report(self.graph_module)

    def print_trainable_parameters(self) -> None:
        """Print the number of weights that train, in PEFT's words."""
        trainable, total = _counts(self)
        share = 100 * trainable / total if total else 0.0
        print(f"trainable params: {trainable:,d} || all params: {total:,d} || trainable%: {share:.4f}")

    def parameter_groups(
        self, *, lr: float, weight_decay: float = 0.0, head_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for `torch.optim`: tuners, head and other trained weights, each with and without weight decay.

        Biases, norms and scales (fewer than two dimensions) don't decay. The head learns at `head_lr` if that is given.
        """
        return parameter_groups(self, self._fxtune.head, lr=lr, weight_decay=weight_decay, head_lr=head_lr)

    def prepare(self, *args: Any, **kwargs: Any) -> None:
        """Capture the graph for inputs like these ahead of the first call with them; torch.compile needs that."""
        self._fxtune.graph_for("forward", args, kwargs)

    def gates(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """λ for these inputs: each query's share of attention that goes to a prefix or to prompts (Eq. 3 and 5).

        Returns:
            Module path of the tuner -> B x heads x N, between 0 and 1; further calls of a shared layer have their
            number in the key. The model runs in the mode that it is in, without gradients.

        Raises:
            PlanError: no tuner takes part in a softmax, or the form is the original one, which has no λ.
        """
        return gates(self, lambda: self(*args, **kwargs))

    def prompt_rows(self, *args: Any, **kwargs: Any) -> dict[str, torch.Tensor]:
        """The prompts' own rows in each attention that they take part in (D of Eq. 5), which else nobody computes.

        Returns:
            Module path of the tuner -> B x heads x P x head_dim.

        Raises:
            PlanError: there are none.
        """
        return prompt_rows(self, lambda: self(*args, **kwargs))

    def compute_features(self, *args: Any, **kwargs: Any) -> Features:
        """The values of the trunk that a detached bypass and the tail read, for these inputs of the model.

        The trunk runs without gradients and in evaluation mode, whatever the model's. Hooks of captured modules
        (``tuned.blocks[0]``) do not run, those of leaves do.

        Returns:
            Name of the value (module path, and its name there) -> tensor.

        Raises:
            PlanError: there is no bypass.
        """
        return split_for(self._fxtune, args, kwargs).features(*args, **kwargs)

    def from_features(self, features: Mapping[str, torch.Tensor]) -> Any:
        """What the model returns, from what `compute_features` gave: bypass and tail run alone.

        ``tuned.from_features(tuned.compute_features(x))`` is ``tuned(x)``, bit for bit.

        Raises:
            PlanError: there is no bypass.
            InputError: these are the features of another model, of other rules, or of inputs of another size.
        """
        return split_of(self._fxtune, features).output(features)

    def cache_features(
        self,
        dataloader: Iterable[Any],
        folder: str | Path,
        *,
        dtype: torch.dtype | None = None,
        views: int | None = None,
        split_batch: SplitBatch | None = None,
        shard_bytes: int = 2**28,
    ) -> FeatureCache:
        """Run the trunk over a dataset once and store what the bypass reads of it; epochs then run the bypass alone::

            cache = tuned.cache_features(dataloader, "cache/")
            for features, labels in cache.loader(batch_size=32, shuffle=True):
                loss(tuned.from_features(features), labels).backward()

        A folder with a finished cache is taken as it is, if it was made with this trunk's weights, this preprocessing
        (the first samples' inputs and labels are compared), and of the values that this bypass reads: tuners of another
        kind or size can use it, too. A half-made one is completed. What is read from it is what the trunk computed, in
        batches of the dataloader's size, bit for bit unless `dtype` rounds it; in batches of another size a trunk's
        matrix products may round otherwise (about 1e-6 relative in float32).

        Args:
            dataloader: gives batches again each time it is gone through. The model's inputs are a mapping's entries
                that it was captured with, or the first item of a tuple, or the batch itself; everything else (labels)
                is stored too. A shuffled `DataLoader` is read in its dataset's order.
            folder: where the cache lies.
            dtype: in which floating features are stored; they are read in their own again.
            views: how many times each sample is stored, with other random augmentation; None where it does not vary.
            split_batch: takes a batch apart into the model's inputs (in the forms of `example_inputs`) and the rest.
            shard_bytes: about how large a file gets; so much is lost at most by an interruption.

        Raises:
            PlanError: there is no bypass.
            CacheError: data that vary at random without `views`; a cache that was made of something else; samples that
                are not alike; too little disk.
        """
        check_bypass(self._fxtune)
        return cache_features(
            lambda args, kwargs: split_for(self._fxtune, args, kwargs),
            self.graph_module.signature,
            dataloader,
            folder,
            dtype=dtype,
            views=views,
            split_batch=split_batch,
            shard_bytes=shard_bytes,
        )

    def save(self, folder: str | Path, *, format: Format = "fxtune") -> None:
        """Write the tuners, and what else trains or has moved, for `fxtune.load`.

        ==============  ===========================================================================================
        ``fxtune``      Everything. One file has all that loading needs, `tuners.safetensors`: the weights, and in
                        its header the resolved rules and a fingerprint of the backbone. An earlier one gives way in
                        one step, so that a killed save loses nothing. The rules stand beside it once more, as files
                        to be read and used elsewhere.
        ``peft``        LoRA on linear modules, and whole modules or biases that train beside it: what
                        ``peft.PeftModel.from_pretrained`` loads on the plain model (with the new head on it, if there
                        is one). A save that is cut short leaves a folder that is refused.
        ``diffusers``   LoRA on a model of a diffusers pipeline: what ``pipeline.load_lora_weights`` loads.
        ==============  ===========================================================================================

        Args:
            folder: where it is written; it is made if there is none.
            format: the form. Only fxtune's own knows the backbone again and gives back the rules as they were.

        Raises:
            CheckpointError: the folder can't be written to; or the form cannot hold what this model is: what and where.
        """
        state = self._fxtune
        if state.made is None:
            raise CheckpointError("this tuned model cannot be saved", found="it was not made by fxtune.apply")
        if state.off:
            raise CheckpointError(
                "this tuned model cannot be saved as it is",
                found="its tuners are off",
                fix=f"leave disabled() first, or call use({state.name!r}); the plain model is tuned.state_dict()",
            )
        if state.unmerged is not None:
            raise CheckpointError(
                "this tuned model cannot be saved as it is",
                found="its tuners are in the weights",
                fix="call unmerge() first; or store the plain model: tuned.state_dict()",
            )
        form = check_format(format)
        if form == "peft":
            return save_as_peft(self, state.original, state.made, Path(folder))
        if form == "diffusers":
            return save_as_diffusers(self, state.original, state.made, Path(folder))
        made = state.made
        backbone = Backbone(
            computing=made.computing,
            weights=weights_of(state.original),
            structure=made.structure,
            parts=parts_of(state.original, made.structure),
            tuners=dict(made.standings),
        )
        write(Path(folder), own_tensors(self, state.original), made.origin, backbone)

    def save_pretrained(self, folder: str | Path, **options: Any) -> Any:
        """`save`, under the name that transformers, diffusers and PEFT have for it.

        With options (`state_dict=`, `is_main_process=`, ...) it is the original's own method that runs, which writes
        all weights in its library's form: so transformers' Trainer calls it for checkpoints that it can resume from.

        Args:
            folder: where it is written; it is made if there is none.
            options: of the original's own method.

        Raises:
            CheckpointError: as for `save`; or there are options, and the original has no such method.
        """
        if not options:
            return self.save(folder)
        theirs = getattr(type(self._fxtune.original), "save_pretrained", None)
        if theirs is None:
            raise CheckpointError(
                "save_pretrained takes a folder alone here",
                found=f"{', '.join(options)}; {type(self).__name__} has no such method of its own",
                fix="leave them out; `save` has the options of fxtune",
            )
        return guarded("save_pretrained", theirs)(self, folder, **options)

    @classmethod
    def from_pretrained(cls, model: nn.Module | str, folder: str | Path, **options: Any) -> TunedModel:
        """`fxtune.load`, under its usual name: ``fxtune.TunedModel.from_pretrained(model, folder)``.

        Args:
            model: the backbone, or its name. It is not changed.
            folder: what `save` or `save_pretrained` wrote.
            options: of `fxtune.load`.

        Raises:
            CheckpointError: as for `fxtune.load`.
        """
        return loaded(model, folder, **options)

    def merge(self) -> TunedModel:
        """Put every tuner that can go there (lora, ssf, bitfit on single operations) into the weights that it changes.

        What the model computes stays the same up to rounding, at the cost of the original: such tuners are gone from
        its graph and its state_dict, which fits the plain model where all of them are. Others stay beside;
        ``print(tuned.report())`` tells which, and why. The weights are the tuned model's own: the original's stay as
        they are, and a tied weight is parted from the one that it is tied to. Dropout of a tuner is not in them.

        Returns:
            The tuned model itself.

        Raises:
            PlanError: no tuner can go into weights, and why; or it is merged already, or off.
        """
        check_on(self._fxtune, "merged")
        self._renew(merged(self._fxtune))
        return self

    def unmerge(self) -> TunedModel:
        """Take the tuners out of the weights again: these are the very tensors that they were, bit for bit.

        Returns:
            The tuned model itself. What else has been trained or set since stays.

        Raises:
            PlanError: it is not merged, or off.
        """
        check_on(self._fxtune, "unmerged")
        self._renew(unmerged(self._fxtune))
        return self

    @property
    def sets(self) -> tuple[str, ...]:
        """The names of the sets of tuners; the one in use is `used`."""
        return tuple(self._fxtune.sets)

    @property
    def used(self) -> str:
        """The name of the set of tuners in use: ``default`` is the one that the model was made with."""
        return self._fxtune.name

    def add(self, name: str, other: TunedModel) -> TunedModel:
        """Take in the tuners of another tuned model of the same original, to be used in turn with these::

            tuned = fxtune.load(model, "out/birds").add("cars", fxtune.load(model, "out/cars"))
            tuned.use("cars")

        The backbone is in memory once. What either has trained stays its own, a head too. Moving, copying and casting
        go for all sets; `save`, `merge`, training and the state_dict for the one in use.

        Args:
            name: of the set.
            other: the tuned model, of one set. It stays usable and holds the same tensors.

        Returns:
            The tuned model itself, which still uses the tuners that it used.

        Raises:
            PlanError: the name is taken, or the other is tuned on another original.
        """
        add_set(self._fxtune, name, other._fxtune)
        return self

    def use(self, name: str) -> TunedModel:
        """Compute with the set of tuners of this name from now on; mode and checkpointing stay as they are.

        Returns:
            The tuned model itself.

        Raises:
            PlanError: there is no such set; the nearest one.
        """
        _adopt(self, set_named(self._fxtune, name))
        return self

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """While on, no tuner does anything: the model computes what its backbone does, and its head, trained or not.

        Meanwhile it can't be saved, merged or unmerged. The graph without tuners is captured when first asked for.
        """
        before = self._fxtune
        _adopt(self, without_tuners(before))
        try:
            yield
        finally:
            _adopt(self, before)

    def _renew(self, state: Tuning) -> None:
        """Take another variant of the set in use in its place."""
        _adopt(self, state)
        state.sets[state.name] = state

    def strip(self) -> nn.Module:
        """The original, bit-equal and with its flags as they were. The tuned model stays usable."""
        return self._fxtune.original

    # What nn.Module does, on every graph

    def train(self, mode: bool = True) -> TunedModel:
        """Set the mode as the original's own train() would; frozen batch norms stay in eval mode."""
        self._fxtune.set_mode(mode)
        self.training = self._fxtune.twin.training
        return self

    def requires_grad_(self, requires_grad: bool = True) -> TunedModel:
        """Let every weight train, or none. Weights shared with the original become private before they train.

        Raises:
            PlanError: some are quantised.
        """
        if requires_grad:
            check_trainable(dict(self.named_parameters()))
            make_private(self._fxtune.original, self._fxtune.trees(), lambda _, tensor: True)
        nn.Module.requires_grad_(self, requires_grad)
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch. A frozen weight for which other values come becomes private, so that the original keeps its own.

        Raises:
            InputError: `assign=True`, which would part the graphs' weights from each other; or plain values for a
                quantised weight.
        """
        if assign:
            raise InputError(
                "A tuned model can't take over tensors from a state_dict.",
                found="assign=True",
                fix="leave assign out: the values are copied",
            )
        check_loadable(state_dict, self)
        make_private(
            self._fxtune.original,
            self._fxtune.trees(),
            lambda name, tensor: name in state_dict and _differ(state_dict[name], tensor),
        )
        return nn.Module.load_state_dict(self, state_dict, strict=strict)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> TunedModel:
        apply_once(self._fxtune.every_tree() if recurse else [], fn)
        return self

    def _replicate_for_data_parallel(self) -> TunedModel:
        raise UnsupportedModelError(
            "A tuned model can't be replicated by DataParallel.",
            fix="use DistributedDataParallel, or one device (CUDA_VISIBLE_DEVICES=0)",
        )

    def _checkpoint_blocks(self, options: dict[str, Any] | None) -> None:
        self._fxtune.checkpoint(options)

    @property
    def is_activation_checkpointing(self) -> bool:
        return self._fxtune.checkpointing is not None

    # Passing for the original, copies and pickles

    def __getattr__(self, name: str) -> Any:
        try:
            return nn.Module.__getattr__(self, name)
        except AttributeError:
            return attribute_of_original(self, name)

    def __dir__(self) -> list[str]:
        return sorted({*nn.Module.__dir__(self), *dir(self._fxtune.twin)})  # type: ignore[no-untyped-call]

    def _get_name(self) -> str:
        return f"Tuned{type(self).__name__}"

    def __deepcopy__(self, memo: dict[int, Any]) -> TunedModel:
        return _made(copied_state(self._fxtune, memo), copy.deepcopy(_own_attributes(self), memo))

    def __reduce__(self) -> Any:
        return _unpickled, (self._fxtune.original, dump_state(self._fxtune, _own_attributes(self)))


def _assemble(tuned: TunedModel, state: Tuning) -> None:
    """Make the first graph's tree the tuned model's own: not a copy of its dicts, but the very dicts."""
    nn.Module.__init__(tuned)
    _adopt(tuned, state)
    state.sets.setdefault(state.name, state)


def _adopt(tuned: TunedModel, state: Tuning) -> None:
    tuned.training = state.twin.training
    for name in _ROOT_DICTS:
        tuned.__dict__[name] = state.first.__dict__[name]
    for name in RUN_HOOKS:
        tuned.__dict__[name] = state.twin.__dict__[name]
    tuned.__dict__["_fxtune"] = state


def _own_attributes(tuned: TunedModel) -> dict[str, Any]:
    """What the user or a library has put on the tuned model itself: hooks, plain attributes."""
    return {name: value for name, value in tuned.__dict__.items() if name not in (*_ROOT_DICTS, "_fxtune")}


def _counts(model: nn.Module) -> tuple[int, int]:
    """The number of weights that train, and of all weights."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def _made(state: Tuning, attributes: dict[str, Any]) -> TunedModel:
    for each in state.every_state():
        for graph in each.every_graph():
            each.dress(graph)
    tuned = TunedModel.__new__(TunedModel, state.original)
    _assemble(tuned, state)
    tuned.__dict__.update(attributes)
    return tuned


def _unpickled(original: nn.Module, pickled: bytes) -> TunedModel:
    return _made(*load_state(original, pickled))


def _differ(new: Any, tensor: torch.Tensor) -> bool:
    if not isinstance(new, torch.Tensor) or new.shape != tensor.shape or new.is_meta or tensor.is_meta:
        return False
    return not same_numbers(tensor, new)
