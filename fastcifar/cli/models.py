"""`fastcifar models list` and `fastcifar models show`: the networks, their layers, and who shares which parameters."""

from __future__ import annotations

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
from fastcifar.recipes.declare import type_hints

if TYPE_CHECKING:
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
    """Print a network's layers, their shapes and parameters, and with --graph which layers share parameters.

    What is used is found by running the network. A network's or a recipe's fields can be changed, as train's.
    """

    def _check(self) -> None:
        super()._check()
        _check_graph(self)


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
    """Run `fastcifar models list`."""
    options = parse(args, ListOptions(), "fastcifar models list")
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
    title, graph, options = _graph_of(_with_graph_value(args))
    if options.graph not in (None, _TEXT):
        from fastcifar.cli.sharing import save_graph

        save_graph(graph, title, user_path(options.graph, "--graph"))
    if options.json:
        print(json.dumps(_described(title, graph), indent=2))
        return 0
    print("\n".join(map(shown, [title, "", *_layers(graph), *(_sharing(graph) if options.graph else ())])))
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


def _graph_of(args: list[str]) -> tuple[str, Graph, ShowOptions | FileOptions]:
    import_plugins(args)
    free, _ = take_free_words(args, type_hints(ShowOptions))
    what = free[0] if free else ""
    if what and what not in NETWORKS:
        path = user_path(what, "the network")
        if not path.exists():
            known = f"{', '.join(NETWORKS)}, a saved run, a file of weights, or --recipe NAME"
            hint = f"; did you mean --recipe {what}?" if what in RECIPES else did_you_mean(what, NETWORKS)
            raise UserError(f"there is no network {brief(what)}{hint}; allowed: {known}")
        options = parse(args, FileOptions(), PROG)
        _refuse_drawing(options)
        title, graph = _graph_of_file(path)
        return title, graph, options
    if what and last_given(args, "--network"):
        raise UserError(f"--network is given with {what}; allowed: one of the two")
    options = parse_with_recipe(["--network", what, *args] if what else args, ShowOptions, PROG, shorten=None)
    if options.what != what:
        raise UserError(f"the network {brief(options.what)} stands behind other words; allowed: as the first")
    _refuse_drawing(options)
    classes, side, _ = options.form()
    options.settings.network.refuse_side(side)

    from fastcifar.costs.sharing import trace

    kind, count = options.settings.network.kind, trace(_built(options.settings, classes, side), (2, 3, side, side))
    of = label(options.settings) if last_given(args, "--recipe") else ""
    return f"{kind}{f' of {of}' * bool(of)}, {side} x {side} pixels", count, options


def _refuse_drawing(options: ShowOptions | FileOptions) -> None:
    if options.graph and options.graph.lower().endswith((".svg", ".png")):
        from fastcifar.report.figures import refuse_without_matplotlib

        refuse_without_matplotlib()


def _graph_of_file(path: Path) -> tuple[str, Graph]:
    from fastcifar.costs.sharing import of_tensors, trace
    from fastcifar.input import weights_file

    if path.is_dir() and (path / RECORD).is_file():
        from fastcifar.training import load_run

        recipe, module, record = load_run(path)
        side = record.dataset.side
        return f"{recipe.network.kind} of {path}", trace(module, (2, 3, side, side))
    from fastcifar.training.weights import COUNTS, read_weights

    file = weights_file(path)
    tensors = {name: tensor for name, tensor in sorted(read_weights(file)[0].items()) if not name.endswith(COUNTS)}
    return f"weights in {file}; tensors of equal values count as one", of_tensors(tensors)


def _built(recipe: Recipe, classes: int = 10, side: int = 32) -> Network:
    from fastcifar.host import building
    from fastcifar.models import build_model
    from fastcifar.models.network import CENTERED
    from fastcifar.registry import resolve

    with building(0, resolve(recipe.network.builder)):
        return build_model(recipe, classes, CENTERED, CENTERED, sides=(side,))


def _entry(recipe: Recipe, name: str, summary: str) -> dict[str, Any]:
    count = sum(parameter.numel() for parameter in _built(recipe).parameters())
    return {"network": recipe.network.kind, "recipe": name or None, "parameters": count, "summary": summary}


def _layers(graph: Graph) -> list[str]:
    """Return a line for each layer, indented as modules lie in each other."""
    rows: list[tuple[str, str, str, str]] = []
    above: list[str] = []
    for layer in graph.layers:
        words = layer.name.split(".")
        same = next(
            (n for n, (a, b) in enumerate(zip(above, words, strict=False)) if a != b), min(len(above), len(words))
        )
        rows += [("  " * depth + words[depth], "", "", "") for depth in range(same, len(words) - 1)]
        borrowed = sum(tensor.is_shared for tensor in layer.tensors)
        note = f"{borrowed} {graph.word}" if borrowed else ""
        note += f"{', ' * bool(note)}called {layer.calls} times" if layer.calls > 1 else ""
        shape, count = "x".join(map(str, layer.output)) or "-", f"{layer.parameters:,}"
        rows.append(("  " * (len(words) - 1) + f"{words[-1]}  {layer.kind}".rstrip(), shape, count, note))
        above = words
    width = max((len(name) for name, *_ in rows), default=0) + 2
    lines = [f"{'layer':<{width}}{'output':>12}{'parameters':>14}"]
    lines += [f"{name:<{width}}{shape:>12}{count:>14}  {note}".rstrip() for name, shape, count, note in rows]
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


def _described(title: str, graph: Graph) -> dict[str, Any]:
    layers = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "output": layer.output,
            "calls": layer.calls,
            "parameters": layer.parameters,
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
    return {"network": title, "parameters": graph.parameters, "layers": layers, "tensors": tensors}


def _sum(tensors: Iterable[Any]) -> int:
    return sum(tensor.size for tensor in tensors)
