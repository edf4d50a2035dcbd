"""Mutation testing: small changes of the code, each of which some test must notice.

    python benchmarks/mutants.py [--number 200] [--seed 0] [--only planners/rules] [--out benchmarks/results/mutants.md]

Draws mutations of the modules whose thresholds and safety rules matter (planners, training guards, evaluation, storage;
with `--only` any others, such as `autoseg/stages`), one at a time: a comparison, a number, a minimum, an arithmetic or boolean operator is changed in a copy of the
repository, and the tests of that module run, then those of its room. A mutant that no test notices survives and is listed.
Tests of rooms are chosen by their path: `planners/rules/loss.py` by `tests/planners/rules/test_loss.py`, then `tests/planners`.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parents[1]
MUTATED = ("planners", "autoseg/training/guards.py", "autoseg/evaluation", "autoseg/storage")
LIMIT_S = 900.0
"""A test run that takes longer counts as noticing: a mutant may loop for ever."""
TIME_LIMIT = "time limit"
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult
}  # fmt: skip
EXTREMES = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One changed place."""

    path: Path
    """Of the module, below the repository."""
    line: int
    before: str
    after: str
    source: str
    """Of the whole module after the change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the tests said of a mutant."""

    mutant: Mutant
    noticed_by: str | None
    seconds: float


def changed(node: ast.AST) -> Iterator[ast.AST]:
    """Every small change of one node, as a node to put in its place."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=comparators) if type(op) in COMPARISONS:
            yield ast.Compare(left=left, ops=[COMPARISONS[type(op)]()], comparators=comparators)
        case ast.BoolOp(op=op, values=values):
            yield ast.BoolOp(op=ast.Or() if isinstance(op, ast.And) else ast.And(), values=values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield operand
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC and not _is_text(left, right):
            yield ast.BinOp(left=left, op=ARITHMETIC[type(op)](), right=right)
        case ast.Constant(value=bool(value)):
            yield ast.Constant(value=not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(value=value + 1 if isinstance(value, int) or value == 0 else value * 2)
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if name in EXTREMES:
            yield ast.Call(func=ast.Name(id=EXTREMES[name], ctx=ast.Load()), args=args, keywords=keywords)


def _is_text(*nodes: ast.expr) -> bool:
    return any(
        isinstance(node, ast.JoinedStr | ast.Tuple | ast.List) or isinstance(getattr(node, "value", None), str)
        for node in nodes
    )


def places(tree: ast.Module) -> Iterator[ast.AST]:
    """Nodes that run and decide: not annotations, decorators, texts, assertions or what only type checkers read."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.JoinedStr | ast.Raise | ast.Import | ast.ImportFrom | ast.Assert):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip(): lengths that are equal anyway
            continue
        yield node
        skipped = ("annotation", "returns", "decorator_list", "type_params")
        for name, value in ast.iter_fields(node):
            if name not in skipped:
                waiting += [
                    each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST)
                ]


def mutants_of(path: Path) -> Iterator[Mutant]:
    """All mutants of one module."""
    text = (ROOT / path).read_text()
    lines = text.encode().splitlines(keepends=True)
    for node in places(ast.parse(text)):
        for new in changed(node):
            before = ast.get_source_segment(text, node)
            after = ast.unparse(ast.fix_missing_locations(ast.copy_location(new, node)))
            if before is None or before == after:
                continue
            start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset  # type: ignore[attr-defined]
            end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset  # type: ignore[attr-defined]
            whole = text.encode()
            source = (whole[:start] + f"({after})".encode() + whole[end:]).decode()
            yield Mutant(path=path, line=node.lineno, before=before, after=after, source=source)  # type: ignore[attr-defined]


def draw(number: int, seed: int, only: str) -> list[Mutant]:
    """So many mutants, spread over modules in proportion to what can be changed in them."""
    files = [path for name in ([only] if only else MUTATED) for path in _files(ROOT / name)]
    chosen = [path.relative_to(ROOT) for path in files]
    everything = [mutant for path in chosen for mutant in mutants_of(path)]
    random.Random(seed).shuffle(everything)
    return list(islice(filter(_is_python, everything), number))


def _is_python(mutant: Mutant) -> bool:
    try:
        ast.parse(mutant.source)
    except SyntaxError:
        return False
    return True


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def tests_of(path: Path) -> list[list[str]]:
    """What to run, nearest first: the module's own test file, then the tests of its room."""
    own = [f"tests/{path.parent.as_posix()}/test_{path.stem}.py"]
    room = [f"tests/{'/'.join(path.parts[:2])}" if path.parts[0] == "autoseg" else "tests/planners"]
    runs = [[each for each in names if (ROOT / each).exists()] for names in (own, room)]
    if path.as_posix() == "autoseg/settings.py":
        runs.append(["tests/autoseg/test_settings.py", "tests/autoseg/test_cli.py"])
    return [names for names in runs if names]


def judge(mutant: Mutant, copy: Path) -> Verdict:
    """Run the tests on a mutant in a copy of the repository, which is as before afterwards."""
    place, started = copy / mutant.path, time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(copy)}  # also for the programs that tests start
    original = place.read_text()
    place.write_text(mutant.source)
    try:
        for names in tests_of(mutant.path):
            call = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", *names]
            try:
                done = subprocess.run(
                    call, cwd=copy, env=environment, capture_output=True, timeout=LIMIT_S, check=False
                )
            except subprocess.TimeoutExpired:
                return Verdict(mutant=mutant, noticed_by=TIME_LIMIT, seconds=time.monotonic() - started)
            if done.returncode not in (0, 5):
                return Verdict(mutant=mutant, noticed_by=names[0], seconds=time.monotonic() - started)
    finally:
        place.write_text(original)
    return Verdict(mutant=mutant, noticed_by=None, seconds=time.monotonic() - started)


def run(mutants: list[Mutant], num_workers: int) -> list[Verdict]:
    """Judge all, ``num_workers`` at a time, each in a copy of its own."""
    copies: Queue[Path] = Queue()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(num_workers):
            copy = Path(folder) / str(number) / "repository"
            ignored = shutil.ignore_patterns(".git", ".venv", ".mypy_cache", "__pycache__", "demo")
            shutil.copytree(ROOT, copy, ignore=ignored)
            copies.put(copy)

        def one(mutant: Mutant) -> Verdict:
            copy = copies.get()
            try:
                verdict = judge(mutant, copy)
            finally:
                copies.put(copy)
            print(f"{'survived' if verdict.noticed_by is None else 'killed':8}  {describe(mutant)}", flush=True)
            return verdict

        with ThreadPoolExecutor(num_workers) as pool:
            return list(pool.map(one, mutants))


def describe(mutant: Mutant) -> str:
    """Place and change in one line."""
    return (
        f"{mutant.path}:{mutant.line}: {' '.join(mutant.before.split())[:60]} -> {' '.join(mutant.after.split())[:60]}"
    )


def table(verdicts: list[Verdict], command: str) -> str:
    """The result as Markdown: the share that was killed, and the survivors."""
    survivors = [verdict.mutant for verdict in verdicts if verdict.noticed_by is None]
    killed = len(verdicts) - len(survivors)
    stopped = sum(verdict.noticed_by == TIME_LIMIT for verdict in verdicts)
    lines = [
        "# Mutants",
        "",
        f"`{command}`: {killed} of {len(verdicts)} killed ({killed / len(verdicts):.0%}), {stopped} of them by the limit of {LIMIT_S:.0f} s.",
        "",
        "Survivors:",
        "",
        *(f"- `{describe(mutant)}`" for mutant in sorted(survivors, key=lambda each: (each.path, each.line))),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="module or folder to mutate instead")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    arguments = parser.parse_args()
    verdicts = run(draw(arguments.number, arguments.seed, arguments.only), arguments.workers)
    text = table(verdicts, " ".join(["python", "benchmarks/mutants.py", *sys.argv[1:]]))
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
