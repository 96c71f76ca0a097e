"""A network's graph of parameters, drawn: tensors and the layers that use them, shared ones in red."""

from __future__ import annotations

import io
import json
from pathlib import Path

from fastcifar.costs.sharing import Graph, part_of
from fastcifar.escape import shown
from fastcifar.output import write_whole

_RED, _GREY = "#c0392b", "#9a9a9a"
_ROW = 0.17
"""Inches of a line of text."""
_TALLEST = 350
"""Inches of a picture, whose pixels matplotlib can count; lines of larger networks are nearer to each other."""


def save_graph(graph: Graph, title: str, file: Path) -> None:
    """Write the graph as text for Graphviz (.dot) or as a picture (.svg, .png). Raises UserError where that cannot be
    done."""
    kind = file.suffix.lower()
    data = to_dot(graph, title).encode() if kind == ".dot" else _picture(graph, title, kind[1:])
    write_whole(file, lambda part: part.write_bytes(data))


def to_dot(graph: Graph, title: str) -> str:
    """Return the graph in Graphviz's language: an ellipse for each tensor of parameters, a box for each layer in that
    of its part, and a line from each tensor to each layer that uses it."""
    layers = {layer: f"l{number}" for number, layer in enumerate(graph.layers)}
    lines = ["digraph parameters {", "  rankdir=LR;", f"  label={_quoted(title)};", "  node [fontsize=10];"]
    for number, part in enumerate(dict.fromkeys(part_of(layer.name) for layer in graph.layers)):
        lines += [f"  subgraph cluster{number} {{", f"    label={_quoted(part)};"]
        for layer, node in layers.items():
            if part_of(layer.name) == part:
                times = f"\n{layer.calls} times" if layer.calls > 1 else ""
                said = f"{layer.name}\n{layer.kind} {'x'.join(map(str, layer.output))}".rstrip()
                lines.append(f"    {node} [shape=box, label={_quoted(said + times)}];")
        lines.append("  }")
    for number, tensor in enumerate(graph.tensors):
        color = f", color={_quoted(_RED)}, penwidth=2" if tensor.is_shared else ""
        said = "\n".join([*tensor.names, f"{list(tensor.shape)}"])
        lines.append(f"  t{number} [shape=ellipse, label={_quoted(said)}{color}];")
        for layer in tensor.layers:
            red = f" [color={_quoted(_RED)}, penwidth=2]" if tensor.is_shared else ""
            lines.append(f"  t{number} -> {layers[layer]}{red};")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return json.dumps("\n".join(map(shown, text.split("\n"))), ensure_ascii=False)


def _picture(graph: Graph, title: str, kind: str) -> bytes:
    """Return an image with the tensors on the left, the layers on the right and lines between them."""
    import matplotlib  # pyright: ignore[reportMissingImports]
    from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]

    tensors, layers = graph.tensors, graph.layers
    rows = max(len(tensors), len(layers), 1)
    with matplotlib.rc_context({"svg.hashsalt": "fastcifar", "svg.fonttype": "none", "text.parse_math": False}):
        canvas = Figure(figsize=(13, min(_TALLEST, 1 + _ROW * rows)))
        axes = canvas.add_axes((0, 0, 1, 1))
        axes.set_xlim(0, 13)
        axes.set_ylim(rows + 1, -2)
        axes.axis("off")
        axes.text(0.2, -1, f"{shown(title)}: parameter tensors, and the layers that use them; {graph.word} ones in red")
        heights = {layer: place * rows / len(layers) for place, layer in enumerate(layers)}
        for place, tensor in enumerate(tensors):
            y, color = place * rows / len(tensors), _RED if tensor.is_shared else "black"
            more = f" = {len(tensor.names) - 1} more" if len(tensor.names) > 1 else ""
            said = shown(f"{tensor.names[0]}{more} {'x'.join(map(str, tensor.shape))}")
            axes.text(5.2, y, said, ha="right", va="center", fontsize=7, color=color)
            for layer in tensor.layers:
                width = 1.1 if tensor.is_shared else 0.5
                axes.plot((5.3, 7.7), (y, heights[layer]), color=_RED if tensor.is_shared else _GREY, linewidth=width)
        for layer, y in heights.items():
            times = f", {layer.calls} times" if layer.calls > 1 else ""
            said = shown(f"{layer.name}  {layer.kind} {'x'.join(map(str, layer.output))}{times}")
            axes.text(7.8, y, said, va="center", fontsize=7)
        file = io.BytesIO()
        canvas.savefig(file, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()
