"""`fastcifar models` and `fastcifar models show`: the networks, their layers, what these cost, and who shares which
parameters."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from fastcifar.cli.arguments import import_plugins, last_given, parse, parse_with_recipe, take_free_words
from fastcifar.cli.options import CommandOptions, FormOptions, Switch
from fastcifar.errors import UserError, brief, did_you_mean
from fastcifar.escape import shown
from fastcifar.output import RECORD, user_path
from fastcifar.recipes import NETWORKS, RECIPES, Recipe, label
from fastcifar.recipes.augmentation import MOST_SIDE
from fastcifar.recipes.declare import setting, type_hints

if TYPE_CHECKING:
    from torch import nn

    from fastcifar.costs.sharing import Graph
    from fastcifar.models import Network

PROG = "fastcifar models show"
_TEXT = "text"
_DRAWN = (".dot", ".svg", ".png")
_NAME = arg(metavar="NETWORK|RUN_DIR|FILE", help_behavior_hint="(default: the recipe's network)")
_GRAPH = arg(metavar="[FILE.dot|.svg|.png]", help_behavior_hint="")


@dataclass(frozen=True)
class ListOptions(CommandOptions):
    """List the networks, each with its parameters and those of the wider or narrower ones that recipes use."""

    json: Switch = False
    """Print a JSON array and nothing else to standard output."""


@dataclass(frozen=True)
class _Shown:
    what: Annotated[Positional[str], _NAME] = ""
    """A network, by name; the folder of a saved run; a file of weights, of which names alone are known."""
    graph: Annotated[str | None, _GRAPH] = None
    """Say which parameter tensors are shared, by which layers; with a file's name, draw the graph of all: as text for
    Graphviz (.dot), or as a picture (needs the extra plot)."""
    json: Switch = False
    """Print layers and tensors as JSON and nothing else to standard output."""


@dataclass(frozen=True)
class ShowOptions(_Shown, FormOptions):
    """Print a network's layers: their shapes and parameters, their FLOP and the bytes that they keep for the backward
    pass in float32, for one image; with --graph which layers share parameters.

    What is used is found by running the network. A network's or a recipe's fields can be changed, as train's.
    """

    side: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the data set's)")] = setting(
        None, at_least=1, at_most=MOST_SIDE, unit="pixels"
    )
    """Side of the images, as --resize."""

    def _check(self) -> None:
        super()._check()
        _check_graph(self)
        self._require("side", None in (self.side, self.resize), "without --resize, which says the same")

    def form(self) -> tuple[int, int, tuple[int, int]]:
        if self.side is None:
            return super().form()
        return dataclasses.replace(self, side=None, resize=self.side).form()


@dataclass(frozen=True)
class FileOptions(_Shown, CommandOptions):
    """Print the layers of a saved run's network, or of a file of weights."""

    def _check(self) -> None:
        super()._check()
        _check_graph(self)


def _check_graph(options: ShowOptions | FileOptions) -> None:
    graph = options.graph
    if graph not in (None, _TEXT) and Path(graph).suffix.lower() not in _DRAWN:
        raise UserError(f"--graph is {brief(graph)}; allowed: --graph alone, or a file of {', '.join(_DRAWN)}")


def main(args: Sequence[str]) -> int:
    """Run `fastcifar models`, also called `fastcifar models list`."""
    options = parse(args, ListOptions(), "fastcifar models")
    found: list[dict[str, Any]] = []
    for kind, config in NETWORKS.items():
        summary = " ".join((inspect.getdoc(config) or "").partition("\n\n")[0].split())
        found.append(_entry(Recipe(network=config()), "", summary))
        for name, recipe in RECIPES.items():
            if recipe.network.kind == kind and recipe.network != config():
                found.append(_entry(recipe, name, "the recipe's"))
    if options.json:
        print(json.dumps(found, indent=2))
        return 0
    rows = [
        (f"  {each['recipe']}" if each["recipe"] else each["network"], f"{each['parameters']:,}", each["summary"])
        for each in found
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for name, count, summary in (("network", "parameters", ""), *rows):
        print(f"{name:<{widths[0]}}  {count:>{max(widths[1], 10)}}  {shown(summary)}".rstrip())
    return 0


def show(args: Sequence[str]) -> int:
    """Run `fastcifar models show`."""
    title, graph, costs, options = _graph_of(_with_graph_value(args))
    if options.graph not in (None, _TEXT):
        from fastcifar.cli.sharing import save_graph

        save_graph(graph, title, user_path(options.graph, "--graph"))
    if options.json:
        print(json.dumps(_described(title, graph, costs), indent=2))
        return 0
    print("\n".join(map(shown, [title, "", *_layers(graph, costs), *(_sharing(graph) if options.graph else ())])))
    if options.graph not in (None, _TEXT):
        print(f"\ndrawn in {shown(options.graph)}")
    beside = Path(options.what).parent
    if graph.word == "equal" and (beside / RECORD).is_file():
        command = shlex.join(["fastcifar", "models", "show", str(beside)])
        print(f"\nvalues alone are compared; {shown(command)} runs the network and says what is shared")
    return 0


def _with_graph_value(args: Sequence[str]) -> list[str]:
    """Return the words with a value after a --graph that has none."""
    words: list[str] = []
    for place, word in enumerate(args):
        words.append(word)
        following = args[place + 1] if place + 1 < len(args) else "-"
        if word == "--graph" and (following.startswith("-") or following in NETWORKS):
            words.append(_TEXT)
    return words


def _graph_of(args: list[str]) -> tuple[str, Graph, Costs | None, ShowOptions | FileOptions]:
    import_plugins(args)
    free, _ = take_free_words(args, type_hints(ShowOptions))
    what = free[0] if free else ""
    if what and what not in NETWORKS:
        path = user_path(what, "the network")
        if not path.exists():
            known = f"{', '.join(NETWORKS)}, a saved run, a file of weights, or --recipe NAME"
            hint = f"; did you mean --recipe {what}?" if what in RECIPES else did_you_mean(what, NETWORKS)
            raise UserError(f"there is no network {brief(what)}{hint}; allowed: {known}")
        for flag in ("--side", "--resize"):
            if last_given(args, flag) is not None:
                raise UserError(f"{flag} is given with {what}; a run's side is its own; allowed: without {flag}")
        options = parse(args, FileOptions(), PROG)
        _refuse_drawing(options)
        return *_graph_of_file(path), options
    if what and last_given(args, "--network"):
        raise UserError(f"--network is given with {what}; allowed: one of the two")
    options = parse_with_recipe(["--network", what, *args] if what else args, ShowOptions, PROG, shorten=None)
    if options.what != what:
        raise UserError(f"the network {brief(options.what)} stands behind other words; allowed: as the first")
    _refuse_drawing(options)
    classes, side, _ = options.form()
    options.settings.network.refuse_side(side)

    from fastcifar.costs.sharing import trace

    network = _built(options.settings, classes, side)
    kind, count = options.settings.network.kind, trace(network, (2, 3, side, side))
    of = label(options.settings) if last_given(args, "--recipe") else ""
    return (
        f"{kind}{f' of {of}' * bool(of)}, {side} x {side} pixels",
        count,
        _costs(network, options.settings, side),
        options,
    )


def _refuse_drawing(options: ShowOptions | FileOptions) -> None:
    if options.graph and options.graph.lower().endswith((".svg", ".png")):
        from fastcifar.report.figures import refuse_without_matplotlib

        refuse_without_matplotlib()


def _graph_of_file(path: Path) -> tuple[str, Graph, Costs | None]:
    from fastcifar.costs.sharing import of_tensors, trace
    from fastcifar.input import weights_file

    if path.is_dir() and (path / RECORD).is_file():
        from fastcifar.training import load_run

        recipe, module, record = load_run(path)
        side = record.dataset.side
        costs = _costs(module, recipe, side)
        return f"{recipe.network.kind} of {path}, {side} x {side} pixels", trace(module, (2, 3, side, side)), costs
    from fastcifar.training.weights import COUNTS, read_weights

    file = weights_file(path)
    tensors = {name: tensor for name, tensor in sorted(read_weights(file)[0].items()) if not name.endswith(COUNTS)}
    return f"weights in {file}; tensors of equal values count as one", of_tensors(tensors), None


@dataclass(frozen=True)
class Costs:
    """What each layer costs for an image, by the layers' names: FLOP of the forward pass, where a multiply-add is two,
    and bytes kept for the backward pass in float32."""

    flop: dict[str, int]
    kept: dict[str, int]


def _costs(module: nn.Module, recipe: Recipe, side: int) -> Costs | None:
    """Return what the layers of a recipe's network cost, a mean over a small batch: batch norm needs several images.
    None where that cannot be counted."""
    from fastcifar.costs.products import count_module
    from fastcifar.models import Network

    images = max(2, recipe.ghost_batch)
    every = {"every": True} if isinstance(module, Network) and module.outputs != 1 else {}
    try:
        shape = (images * recipe.ensemble.orders, 3, side, side)
        count = count_module(module, shape, call=lambda module, images: module(images, **every))
    except Exception:  # a network of the user's own may do what tensors without data cannot
        return None
    kept = {name: size // images for name, size in count.kept.items()}
    return Costs({layer.name: 2 * layer.forward // images for layer in count.layers}, kept)


def _built(recipe: Recipe, classes: int = 10, side: int | None = None) -> Network:
    from fastcifar.host import building
    from fastcifar.models import build_model
    from fastcifar.models.network import CENTERED
    from fastcifar.registry import resolve

    side = recipe.network.side_for(32) if side is None else side
    with building(0, resolve(recipe.network.builder)):
        return build_model(recipe, classes, CENTERED, CENTERED, sides=(side,))


def _entry(recipe: Recipe, name: str, summary: str) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in _built(recipe).parameters())
    return {"network": recipe.network.kind, "recipe": name or None, "parameters": count, "summary": summary}


def _layers(graph: Graph, costs: Costs | None) -> list[str]:
    """Return a line for each layer, indented as modules lie in each other, and one for all of them."""
    rows: list[tuple[str, ...]] = []
    above: list[str] = []
    listed: list[str] = []
    for layer in graph.layers:
        words = layer.name.split(".")
        same = next(
            (n for n, (a, b) in enumerate(zip(above, words, strict=False)) if a != b), min(len(above), len(words))
        )
        for depth in range(same, len(words) - 1):
            listed.append(".".join(words[: depth + 1]))
            cells = _cells(costs, listed[-1:])
            rows.append(("  " * depth + words[depth], "", "", *(cells if cells != ("0", "0") else ("", "")), ""))
        borrowed = sum(tensor.is_shared for tensor in layer.tensors)
        note = f"{borrowed} {graph.word}" if borrowed else ""
        note += f"{', ' * bool(note)}called {layer.calls} times" if layer.calls > 1 else ""
        shape, count = "x".join(map(str, layer.output)) or "-", f"{layer.parameters:,}"
        name = "  " * (len(words) - 1) + f"{words[-1]}  {layer.kind}".rstrip()
        rows.append((name, shape, count, *_cells(costs, [layer.name]), note))
        listed.append(layer.name)
        above = words
    if costs:
        names = {*costs.flop, *costs.kept}
        rest = sorted(names - {*listed})
        rows.append(("between them", "", "", *_cells(costs, rest), ""))
        rows.append(("all", "", f"{graph.parameters:,}", *_cells(costs, sorted(names)), ""))
    width = max((len(name) for name, *_ in rows), default=0) + 2
    heads = ("layer", "output", "parameters", *(("FLOP", "bytes kept") if costs else ("", "")), "")
    widths = (12, 14, *((16, 14) if costs else (0, 0)))
    lines = []
    for name, *cells, note in (heads, *rows):
        columns = "".join(f"{cell:>{size}}" for cell, size in zip(cells, widths, strict=True))
        lines.append(f"{name:<{width}}{columns}  {note}".rstrip())
    trained = sum(tensor.size for tensor in graph.tensors if tensor.trains)
    said = f", {trained:,} of them trained" if any(tensor.trains is not None for tensor in graph.tensors) else ""
    lines += ["", f"{graph.parameters:,} parameters in {len(graph.tensors)} tensors{said}"]
    idle = [tensor for tensor in graph.tensors if not tensor.layers]
    if idle:
        lines.append(
            f"{_sum(idle):,} of them, in {len(idle)} tensors, are used by no layer, such as {idle[0].names[0]}"
        )
    if graph.shared:
        lines.append(f"{_sum(graph.shared):,} of them, in {len(graph.shared)} tensors, are {graph.word}")
    return lines


def _cells(costs: Costs | None, names: Iterable[str]) -> tuple[str, str]:
    """Return the FLOP and the bytes of these layers together."""
    if costs is None:
        return "", ""
    flop, kept = (sum(each.get(name, 0) for name in names) for each in (costs.flop, costs.kept))
    return f"{flop:,}", f"{kept:,}"


def _sharing(graph: Graph) -> list[str]:
    """Return a tree of the shared tensors and the layers that use each, after the sums for each part."""
    if not graph.shared:
        return ["", f"no tensor is {graph.word}"]
    parts = graph.parts()
    width = max(map(len, parts)) + 2
    lines = ["", f"{'part':<{width}}{'its own':>14}{graph.word:>14}  with"]
    for name, (own, common, others) in parts.items():
        lines.append(f"{name:<{width}}{own:>14,}{common:>14,}  {', '.join(others)}".rstrip())
    lines += ["", f"{graph.word} tensors, and the layers that use each"]
    for tensor in graph.shared:
        lines.append(f"{' = '.join(tensor.names)}  {list(tensor.shape)}  {tensor.size:,}")
        for place, layer in enumerate(tensor.layers, start=1):
            times = f", {layer.calls} times" if layer.calls > 1 else ""
            lines.append(f"{'`-' if place == len(tensor.layers) else '|-'} {layer.name}{times}")
    return lines


def _described(title: str, graph: Graph, costs: Costs | None) -> dict[str, Any]:
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "output": layer.output,
            "calls": layer.calls,
            "parameters": layer.parameters,
            "flop": costs and costs.flop.get(layer.name, 0),
            "activation_bytes": costs and costs.kept.get(layer.name, 0),
            "tensors": [tensor.names[0] for tensor in layer.tensors],
        }
        for layer in graph.layers
    ]
    tensors = [
        {
            "names": tensor.names,
            "shape": tensor.shape,
            "trains": tensor.trains,
            graph.word: tensor.is_shared,
            "layers": [layer.name for layer in tensor.layers],
        }
        for tensor in graph.tensors
    ]
    whole = {"flop": costs and sum(costs.flop.values()), "activation_bytes": costs and sum(costs.kept.values())}
    return {"network": title, "parameters": graph.parameters, **whole, "layers": layers, "tensors": tensors}


def _sum(tensors: Iterable[Any]) -> int:
    return sum(tensor.size for tensor in tensors)
