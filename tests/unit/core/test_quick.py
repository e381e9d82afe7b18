"""Named tuples made without their constructor: nobody else looks whether all of their fields are there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import formgate_server


def test_each_has_all_of_its_fields() -> None:
    """Wherever one is made, as many values are given as its class has fields."""
    root = Path(formgate_server.__file__).parent
    seen = 0
    for path in sorted(root.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "import made\n" not in source:
            continue
        module = importlib.import_module(".".join(("formgate_server", *path.relative_to(root).with_suffix("").parts)))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "made":
                kind, values = node.args
                assert isinstance(kind, ast.Name)
                assert isinstance(values, ast.Tuple), f"{path.name}:{node.lineno}: give the values there"
                assert len(values.elts) == len(getattr(module, kind.id)._fields), f"{path.name}:{node.lineno}"
                seen += 1
    assert seen > 5
