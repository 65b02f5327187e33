"""Runs the code of a notebook with plain Python in the working folder, and compares its outputs with those that are stored.

    python3 tests/notebook.py docs/python.ipynb           compares; exit code 1 where an output differs
    python3 tests/notebook.py docs/python.ipynb --write   stores the outputs

Times and digests differ from run to run: a cell whose metadata has `"varies": true` is run and not compared.
"""

import ast
import contextlib
import io
import json
import pathlib
import sys


def outputs(code, names):
    """Runs a cell. Returns what it printed, and its last expression, as Jupyter shows them."""
    body = ast.parse(code)
    last = body.body.pop() if body.body and isinstance(body.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(body, "<cell>", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), names) if last else None
    shown = []
    if printed.getvalue():
        shown.append({"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)})
    if value is not None:
        data = {"text/plain": repr(value).splitlines(keepends=True)}
        shown.append({"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": None})
    return shown


def texts(shown):
    return ["".join(output.get("text") or output["data"]["text/plain"]) for output in shown]


def main(path, write):
    notebook = json.loads(path.read_text())
    names = {"__name__": "__main__"}
    compared = 0
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] != "code":
            continue
        shown = outputs("".join(cell["source"]), names)
        if write:
            cell["outputs"] = shown
        elif not cell["metadata"].get("varies"):
            if texts(shown) != texts(cell["outputs"]):
                sys.exit(f"cell {number} shows {texts(shown)}, and {path.name} has {texts(cell['outputs'])}")
            compared += len(shown)
    if write:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
    else:
        print(f"{compared} outputs are as stored")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), "--write" in sys.argv[2:])
