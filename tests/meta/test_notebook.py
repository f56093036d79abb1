"""The notebooks of ``examples/``: well formed, run from top to bottom, and shown with outputs of the present code.

``python tests/meta/test_notebook.py`` runs them and writes their outputs anew.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from vitrarium.eval.explanations.heat import smaller

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))

PICTURE, TEXT = "image/png", "text/plain"
WIDTH, MOST_BYTES = 520, 200_000  # pixels of a picture; bytes of all pictures of a notebook


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run_cells(notebook: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Run the code cells in order in one namespace; the outputs of each as Jupyter would have written them."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for count, cell in enumerate(code_cells(notebook), start=1):
        shown: list[dict[str, Any]] = []

        def display(*values: Any, shown: list[dict[str, Any]] = shown) -> None:
            shown.extend({"output_type": "display_data", "metadata": {}, "data": looks(value)} for value in values)

        names["display"] = display
        printed, value = io.StringIO(), None
        tree = ast.parse("".join(cell["source"]), f"cell {count}")
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(printed):
            exec(compile(tree, f"cell {count}", "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), f"cell {count}", "eval"), names)
        if printed.getvalue():
            text = printed.getvalue().splitlines(keepends=True)
            shown.insert(0, {"output_type": "stream", "name": "stdout", "text": text})
        if value is not None:
            result = {"output_type": "execute_result", "metadata": {}, "data": looks(value), "execution_count": count}
            shown.append(result)
        yield shown


def looks(value: Any) -> dict[str, Any]:
    """A value as a notebook keeps it: a picture if it has one, else text."""
    if not hasattr(value, "_repr_png_"):
        return {TEXT: [repr(value)]}
    png = smaller(value._repr_png_(), WIDTH)
    return {PICTURE: base64.b64encode(png).decode("ascii"), TEXT: [f"<{type(value).__qualname__}>"]}


def kinds(outputs: list[dict[str, Any]]) -> list[Any]:
    """What sort of thing each output is, its numbers aside."""
    return [(output["output_type"], sorted(output.get("data", ()))) for output in outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs_and_shows_what_it_shows(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    notebook = read(path)
    for cell, outputs in zip(code_cells(notebook), run_cells(notebook), strict=True):
        assert kinds(outputs) == kinds(cell["outputs"]), "".join(cell["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_well_formed(path):
    """The rules of nbformat 4.5 that apply here."""
    notebook = read(path)
    assert set(notebook) == {"cells", "metadata", "nbformat", "nbformat_minor"}
    assert notebook["nbformat"] == 4
    assert notebook["nbformat_minor"] >= 5
    assert notebook["metadata"]["kernelspec"].keys() >= {"name", "display_name"}
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    for cell in notebook["cells"]:
        assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", cell["id"])
        assert isinstance(cell["metadata"], dict)
        assert is_text(cell["source"])
        common = {"cell_type", "id", "metadata", "source"}
        code = {"execution_count", "outputs"} if cell["cell_type"] == "code" else set()
        assert cell["cell_type"] in ("code", "markdown")
        assert set(cell) == common | code
    for count, cell in enumerate(code_cells(notebook), start=1):
        assert cell["execution_count"] == count
        for output in cell["outputs"]:
            check_output(output, count)


def is_text(lines: Any) -> bool:
    """A list of lines, all but the last with their line end."""
    return isinstance(lines, list) and all(line.endswith("\n") for line in lines[:-1]) and bool(lines)


def check_output(output: Mapping[str, Any], count: int) -> None:
    if output["output_type"] == "stream":
        assert set(output) == {"output_type", "name", "text"}
        assert output["name"] == "stdout"
        assert is_text(output["text"])
        return
    result = output["output_type"] == "execute_result"
    assert set(output) == {"output_type", "metadata", "data"} | ({"execution_count"} if result else set())
    assert output.get("execution_count", count) == count
    assert output["output_type"] in ("execute_result", "display_data")
    if PICTURE in output["data"]:
        assert base64.b64decode(output["data"][PICTURE], validate=True)[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_small_and_names_no_machine(path):
    text = re.sub(r'"image/png": "[^"]*"', "", path.read_text(encoding="utf-8"))
    found = re.search(r"(?<![\w.])(/(work|home|root|tmp|Users|mnt|opt|var)/|[A-Z]:\\\\)", text)
    assert found is None, found
    cells = code_cells(read(path))
    pictures = [output["data"].get(PICTURE, "") for cell in cells for output in cell["outputs"] if "data" in output]
    assert sum(len(base64.b64decode(picture)) for picture in pictures) <= MOST_BYTES
    for cell in cells:
        # Plain Python: what only a notebook understands is used nowhere else.
        assert not re.search(r"^\s*[%!]", "".join(cell["source"]), flags=re.M)


def write_outputs(path: Path) -> None:
    """Run a notebook and keep what it shows."""
    from vitrarium.configs.files import write_text

    notebook = read(path)
    for count, (cell, outputs) in enumerate(zip(code_cells(notebook), run_cells(notebook), strict=True), start=1):
        cell.update(execution_count=count, outputs=outputs)
    write_text(path, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for notebook_path in NOTEBOOKS:
        write_outputs(notebook_path)
        print(f"written: {notebook_path} ({notebook_path.stat().st_size:,} bytes)")
