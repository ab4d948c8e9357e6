"""The Python reference as one page, read from the sources without importing them."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent

MODULES = (
    "annotations/judgements.py",
    "annotations/sources.py",
    "annotations/consolidate.py",
    "annotations/study/answers.py",
    "annotations/study/results.py",
    "benchmark/classifier.py",
    "benchmark/records.py",
    "benchmark/runs.py",
    "benchmark/scorecard.py",
    "benchmark/tracks/rectified.py",
    "benchmark/tracks/robustness.py",
    "benchmark/comparison.py",
    "benchmark/statistics.py",
    "leaderboard/entries.py",
    "leaderboard/correctness.py",
    "leaderboard/ranking.py",
    "leaderboard/site/build.py",
)
"""What somebody who builds on the project imports, in reading order."""

HEAD = """---
title: Python
description: What the packages offer to other code.
---

# Python

What the packages offer to other code, read from their sources. A name that begins with an underscore is not
for others; until version 1.0 the rest may change with a line in the [changelog](changelog.md).

"""


@dataclass(frozen=True)
class Item:
    """A function or class: how it is called, and its documentation."""

    kind: str
    name: str
    signature: str
    text: str


def page(root: Path = ROOT) -> str:
    """The reference as Markdown."""
    parts = [HEAD]
    for name in MODULES:
        path = root / name
        if not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        module = name.removesuffix(".py").replace("/", ".")
        parts.append(f"## {module}\n\n{_plain((ast.get_docstring(tree) or '').split(chr(10) * 2)[0])}\n\n")
        for item in items(tree):
            parts.append(f"### {item.name} {{ #{module}.{item.name} }}\n\n")
            parts.append(f"```python\n{item.signature}\n```\n\n")
            if item.text:
                parts.append(f"```text\n{item.text}\n```\n\n")
    return "".join(parts).rstrip() + "\n"


def items(tree: ast.Module) -> list[Item]:
    """Public functions and classes of a module, in its order."""
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            found.append(Item("function", node.name, _signature(node), _text(node)))
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            bases = ", ".join(
                ast.unparse(base) for base in node.bases if not ast.unparse(base).startswith("_")
            )
            lines = [f"class {node.name}({bases})" if bases else f"class {node.name}"]
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    marks = [f"    @{ast.unparse(d)}" for d in inner.decorator_list]
                    lines += ["", *marks, "    " + _signature(inner).replace("\n", "\n    ")]
                    first = (ast.get_docstring(inner) or "").split("\n")[0]
                    lines += [f"        # {first}"] if first else []
                elif (
                    isinstance(inner, ast.AnnAssign)
                    and isinstance(inner.target, ast.Name)
                    and not inner.target.id.startswith("_")
                ):
                    lines.append(f"    {inner.target.id}: {ast.unparse(inner.annotation)}")
            found.append(Item("class", node.name, "\n".join(lines), _text(node)))
    return found


def _signature(node: ast.FunctionDef) -> str:
    arguments = ast.unparse(node.args)
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    line = f"def {node.name}({arguments}){returns}"
    if len(line) <= 100:
        return line
    bare = ast.arguments(
        node.args.posonlyargs,
        node.args.args,
        node.args.vararg,
        node.args.kwonlyargs,
        node.args.kw_defaults,
        node.args.kwarg,
        node.args.defaults,
    )
    pieces = _split(ast.unparse(bare))
    return f"def {node.name}(\n" + "".join(f"    {piece},\n" for piece in pieces) + f"){returns}"


def _split(text: str) -> list[str]:
    """Arguments apart, at commas outside of brackets and quotes."""
    pieces, depth, start, quote = [], 0, 0, ""
    for at, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and not depth:
            pieces.append(text[start:at].strip())
            start = at + 1
    return [*pieces, text[start:].strip()]


def _text(node: ast.FunctionDef | ast.ClassDef) -> str:
    return (ast.get_docstring(node) or "").replace("```", "'''")


def _plain(text: str) -> str:
    return " ".join(text.replace("<", "&lt;").split())
