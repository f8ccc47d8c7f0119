"""The harvest: real functions of this interpreter, split by module, the same every time."""

from __future__ import annotations

import ast
import inspect
import json
import statistics
import textwrap

import pytest

from attent.tasks.data import harvest as module
from attent.tasks.data.harvest import fingerprint, functions, harvest, is_held_out


@pytest.fixture(scope="module")
def splits():
    return harvest("train"), harvest("val")


def test_there_are_about_six_thousand_of_which_a_tenth_of_the_modules_is_held_out(splits):
    train, val = splits
    assert 4000 < len(train) + len(val) < 9000
    assert 0.02 < len(val) / len(train) < 0.3


def test_no_module_and_no_body_is_on_both_sides(splits):
    train, val = splits
    for field in ("module", "response"):
        assert not {row[field] for row in train} & {row[field] for row in val}
    packages = [{row["module"].split(".")[0].strip("_") for row in rows} for rows in splits]
    assert not packages[0] & packages[1]


def test_every_body_is_there_once(splits):
    bodies = [row["response"] for rows in splits for row in rows]
    assert len(bodies) == len(set(bodies))
    assert len({row["response"] for row in functions()}) == len(bodies)


def test_a_row_is_the_function_it_names():
    (row,) = [
        r for r in functions() if (r["module"], r["name"]) == ("statistics", "NormalDist.pdf")
    ]
    source = textwrap.dedent(inspect.getsource(statistics.NormalDist.pdf))
    (function,) = ast.parse(source).body
    (asked,) = ast.parse(row["instruction"]).body
    assert isinstance(function, ast.FunctionDef)
    assert isinstance(asked, ast.FunctionDef)
    assert ast.dump(asked.args) == ast.dump(function.args)
    assert ast.get_docstring(asked) == ast.get_docstring(function)
    body = ast.parse(f"def f():\n{textwrap.indent(row['response'], '    ')}").body[0]
    assert isinstance(body, ast.FunctionDef)
    assert [ast.dump(s) for s in body.body] == [ast.dump(s) for s in function.body[1:]]


def test_every_instruction_and_every_response_can_be_parsed():
    for row in functions():
        ast.parse(row["instruction"])
        ast.parse(f"async def f():\n{textwrap.indent(row['response'], '    ')}")


def test_tests_and_installed_packages_are_passed_over():
    top = {row["module"].split(".")[0] for row in functions()}
    assert {"json", "asyncio", "typing"} <= top
    assert not top & {"test", "idlelib", "site-packages", "torch", "numpy", "pip"}
    assert not [r["module"] for r in functions() if "test" in r["module"].split(".")]


def test_the_split_is_a_function_of_the_seed(splits):
    assert json.dumps(harvest("train")) == json.dumps(splits[0])
    other = {row["module"] for row in harvest("val", seed=1)}
    assert other != {row["module"] for row in splits[1]}


def test_reading_again_gives_the_same_rows_in_the_same_order():
    before, mark = functions(), fingerprint()
    module.functions.cache_clear()
    assert functions() == before
    assert fingerprint() == mark


def test_the_modules_of_a_package_and_twins_in_c_go_together():
    for seed in range(50):
        sides = {is_held_out(m, 0.5, seed=seed) for m in ("json", "json.decoder", "json.tool")}
        assert len(sides) == 1
        assert len({is_held_out(m, 0.5, seed=seed) for m in ("decimal", "_pydecimal")}) == 1
    assert {is_held_out("json", 0.5, seed=seed) for seed in range(20)} == {True, False}


def test_a_body_that_is_on_both_sides_is_on_that_of_training(monkeypatch):
    def row(where, body):
        return {"instruction": "def f(): ...", "response": body, "module": where, "name": "f"}

    held = next(m for m in ("a", "b", "c", "d", "e", "f", "g") if is_held_out(m, 0.5))
    kept = next(m for m in ("a", "b", "c", "d", "e", "f", "g") if not is_held_out(m, 0.5))
    rows = (row(held, "pass"), row(held, "return 1"), row(kept, "pass"), row(kept, "pass"))
    monkeypatch.setattr(module, "functions", lambda: rows)
    assert harvest("train", held_out=0.5) == [rows[2]]
    assert harvest("val", held_out=0.5) == [rows[1]]


def test_files_that_are_no_python_of_this_version_are_passed_over(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text('def f(x):\n    "Doc."\n    return x\n')
    (tmp_path / "bad.py").write_text("def f(:\n")
    (tmp_path / "latin.py").write_bytes(b'# -*- coding: latin-1 -*-\ndef f():\n    "\xe9"\n')
    (tmp_path / "bare.py").write_text('def f():\n    return 1\n\ndef g():\n    "Only this."\n')
    (tmp_path / "same_line.py").write_text('def f(): "Doc."; return 1\n')
    (tmp_path / "long.py").write_text(
        f'def f():\n    "Doc."\n    return "{"x" * module.LONGEST}"\n'
    )
    monkeypatch.setattr(module.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    module.functions.cache_clear()
    try:
        (row,) = functions()
    finally:
        module.functions.cache_clear()
    assert row == {
        "instruction": 'def f(x):\n    "Doc."',
        "response": "return x",
        "module": "good",
        "name": "f",
    }


def test_a_split_that_there_is_not_and_a_share_out_of_range():
    with pytest.raises(ValueError, match="splits train and val, not 'test'"):
        harvest("test")
    with pytest.raises(ValueError, match=r"held_out is in \(0, 1\), got 1"):
        harvest("val", held_out=1.0)
