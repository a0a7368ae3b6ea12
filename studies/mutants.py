"""Break every recipe and rule of the claims in turn, and see that the tests notice.

Usage: python studies/mutants.py [--only TEXT]

A mutant is the package with one change: a recipe replaced by a constant, an argument of a claim
changed, a difference or a ratio turned round, a rule left out. It is killed where a claim of
`tests/analysis/by_hand.yaml` comes out otherwise, or a test of a rule fails. All mutants and what
killed them: `reports/claim-rules/mutants.csv`.
"""

import argparse
import ast
import importlib
import importlib.abc
import importlib.util
import inspect
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = ROOT / "src" / "steadymap" / "analysis" / "claims"
OUTPUT = ROOT / "reports" / "claim-rules" / "mutants.csv"

# Imported before the forks, for speed: what does not import the claims.
_BEFORE = (
    *("pytest", "torch", "scipy.stats", "scipy.optimize", "steadymap.params.checks"),
    *("steadymap.analysis.parameters", "steadymap.analysis.structure", "steadymap.engine.settings"),
)

# Rules: (file, source, mutated source), the first place in the file.
RULES = (
    ("verdict", "signed = [part if sign > 0 else -part for part", "signed = [part for part"),
    ("verdict", "(1 - confidence) / len(signed)", "(1 - confidence)"),
    ("verdict", "if informative(interval(part))}", "}"),
    ("verdict", "if informative(interval) and (low", "if (low"),
    ("verdict", "low > bound or high < bound", "low >= bound or high <= bound"),
    ("verdict", 'return "holds" if (low > bound) == above', 'return "holds" if (low > bound)'),
    ("verdict", "[0] > 0", "[1] > 0"),
    ("verdict", '**{"bound": 1.0, **options}', '**{"bound": 0.0, **options}'),
    ("verdict", "numerator / denominator", "denominator / numerator"),
    ("verdict", '"bound": other.bound', '"bound": 1.0'),
    ("verdict", "return 10**high", "return 10**high / 2"),
    ("verdict", 'claims = table[table["kind"] != "check"]', "claims = table"),
    ("verdict", 'np.argsort(missing, kind="stable")', "np.arange(len(missing))"),
    ("verdict", 'counts["inconclusive"] += counts[NOT_RESOLVED]', "pass"),
    ("verdict", 'leads["p"].fillna(1.0)', 'leads["p"].dropna()'),
    ("verdict", "holm(leads", "list(leads"),
    ("verdict", '"name": f"{claim.name} ({finding.unit})"', '"name": claim.name'),
    ("scores", "PAPER_IMAGES = 1735", "PAPER_IMAGES = 1000"),
    ("scores", "np.maximum(v - noise, 0)", "np.maximum(v, 0)"),
    ("scores", "shares.var(ddof=1)", "shares.var(ddof=0)"),
    ("scores", "n * (mean @ mean) / variance", "n * n * (mean @ mean) / variance"),
    ("scores", "if self.effects.size else 0.0", "* 0"),
    ("scores", 'if pairing == "mismatched" else 0', "if False else 0"),
    ("scores", '"ssim": "sam",', '"ssim": "common",'),
    (
        "scores",
        "variances = defined_mean((cells - means[..., None]) ** 2, 2)",
        "variances = defined_mean((cells - means[..., None]) ** 2, 2) * 2",
    ),
    ("scores", '"mean", "std_rms"', '"mean", "std_mean"'),
    ("scores", '("training",), within=within)', "(), within=ANY)"),
    ("sam", "_NEAR_ONE, _SOME_SPREAD = 0.95, 0.05", "_NEAR_ONE, _SOME_SPREAD = 0.9, 0.02"),
    ("sam", "_FACTOR = 2.0", "_FACTOR = 1.5"),
    ("sam", "_BLANK = 0.1", "_BLANK = 0.05"),
    ("sam", "_SMALL_PATCH, _LARGE_PATCH = 0.35, 1.5", "_SMALL_PATCH, _LARGE_PATCH = 0.6, 2.5"),
    ("sam", "if not spread.p <= level", "if spread.p > 1"),
    ("sam", "finding = ratio.judged_by(study.judge.finding(self.beyond))", "finding = ratio"),
    ("sam", "- (self.denoised_mismatched - self.plain_mismatched)", ""),
    ("sam", "judged=kinds[0] - kinds[1]", "judged=None"),
    ("sam", "judged=regular - robust, ", ""),
    ("sam", "return keys[-1]", "return keys[1]"),
    ("sam", "above=False, notes=notes)", "notes=notes)"),
    ("ipr", "_SIGNIFICANT = 0.05", "_SIGNIFICANT = 0.001"),
    ("ipr", "bound=THRESHOLD", "bound=0.2"),
    ("ipr", 'p.loc[pairs, "holm"] <=', 'p.loc[pairs, "exact"] * 1e3 <='),
    ("ipr", 'parts[f"{name} (excess)"] = group.excess', "pass"),
    ("ipr", "ddof=1", "ddof=0"),
    ("ipr", "return finding.judged_by(evidence.judge.smallest(above))", "return finding"),
    ("ipr", "bound=bound, above=False)", "bound=bound)"),
)


# Of turned places that change no number, and why: place, start of the change, reason.
_NOTE = "only a note reads it"
EQUIVALENT = (
    ("_moving", "len(table)", _NOTE),
    ("spread_ratio_of_pairs", 'both["std_rms"] / both', _NOTE),
    ("global_spread_ratio", "above.std.point", _NOTE),
    ("largest_global_spread_factor", "above / below", "both directions are parts"),
    ("_factor", 'pair["LIME"]', "both directions are parts"),
    ("lime_minus_gradient", "lime - gradient", "judged without its sign"),
    ("accuracies", "100 * ours", "its absolute value is taken"),
    ("smallest_spread_beyond_means", "-_FACTOR / 2", "the same end of a range"),
    ("drop_of_huge_objects", "len(values) - 1", "the same of two settings"),
    ("correlation_of_methods", "2 / math", _NOTE),
    ("largest_s", '1 - same["score"]', _NOTE),
)


@dataclass(frozen=True)
class Mutant:
    """A change of one module's source, or of one claim's arguments.

    Attributes
    ----------
    kind, place, change : str
        What is mutated, where, and how.
    module : str
        Stem of the module.
    source : callable, optional
        From its source to the mutated one.
    claims : tuple of str
        Claims that can notice; empty for all, and the tests of rules.
    arguments : mapping, optional
        Arguments of the one claim.
    """

    kind: str
    place: str
    change: str
    module: str = ""
    source: Callable[[str], str] | None = None
    claims: tuple[str, ...] = ()
    arguments: Mapping[str, Any] | None = None


class Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other source."""

    def __init__(self, name: str, path: Path, source: str):
        self.name, self.path, self.source = name, path, source

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """Spec of the one module."""
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self, origin=str(self.path))

    def exec_module(self, module: ModuleType) -> None:
        """Run the other source."""
        module.__file__ = str(self.path)
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)


def listed() -> list[dict[str, Any]]:
    """Claims of both papers as their files have them, with the module of their recipe."""
    return [
        row | {"module": module}
        for module in ("sam", "ipr")
        for row in yaml.safe_load((CLAIMS / f"{module}.yaml").read_text())
    ]


def users(function: str) -> tuple[str, ...]:
    """Claims that a recipe measures."""
    return tuple(row["claim"] for row in listed() if row["function"] == function)


def constants() -> Iterator[Mutant]:
    """Every recipe as `.5 [.4, .6], holds`."""
    for module, function in dict.fromkeys((row["module"], row["function"]) for row in listed()):
        constant = f'\nrecipe["{function}"] = lambda *_, **__: Finding(0.5, (0.4, 0.6), 4)\n'

        def replaced(text: str, constant: str = constant) -> str:
            return text + constant

        change = "0.5 [0.4, 0.6], holds"
        yield Mutant("recipe", function, change, module, replaced, users(function))


_OTHER = {
    **{"insertion": "deletion", "ssim": "spearman", "spearman": "hog_pearson"},
    **{"sam": "common", "common": "sam", "twin": "control", "control": "twin"},
    **{"LIME-S": "SP-L", "LIME-seed": "MP-seed", "MP-seed": "LIME-seed", "MP-N": "MP-blur"},
    **{"MP-blur": "SP-L", "SP-L": "SP-S", "SP-S": "SP-L", "SG-N": "SG-sigma", "SG-sigma": "SG-N"},
    **{"LIME-N": "LIME-S", "LIME-seed-150": "LIME-seed", "SG": "SP-S", "MP": "LIME"},
    **{"localization_error": "insertion", "googlenet": "resnet", "resnet": "googlenet"},
    **{"denoising-gradient": "denoising-input_x_gradient"},
    **{"denoising-input_x_gradient": "denoising-gradient"},
    **{"guided_backprop": "guided_gradcam", "guided_gradcam": "gradient"},
}


def others(value: Any) -> Iterator[Any]:
    """Other values of an argument."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, float):
        yield value * 0.5 if value < 0.05 else value * 1.2
    elif isinstance(value, str):
        if value in _OTHER:
            yield _OTHER[value]
    elif isinstance(value, list) and value and isinstance(value[0], list):
        yield [[value[0][0], "lime"]]
    elif isinstance(value, list):
        for place, item in enumerate(value):
            rest = [*value[:place], *value[place + 1 :]]
            if rest:
                yield rest
            elif item in _OTHER:
                yield [_OTHER[item]]


def arguments() -> Iterator[Mutant]:
    """Every argument of every claim changed, and the two sweeps of a ratio swapped."""
    for row in listed():
        given = row.get("arguments", {})
        for name, value in given.items():
            for other in others(0.01 if value == 0.01 else value):
                changed = given | {name: 0.1 if value == 0.01 else other}
                change = f"{name}: {changed[name]}"
                yield Mutant(
                    "argument", row["claim"], change, claims=(row["claim"],), arguments=changed
                )
        if "numerator" in given:
            swapped = given | dict(
                zip(
                    ("numerator", "denominator"),
                    (given["denominator"], given["numerator"]),
                    strict=True,
                )
            )
            yield Mutant(
                "argument", row["claim"], "upside down", claims=(row["claim"],), arguments=swapped
            )


def turned() -> Iterator[Mutant]:
    """Every difference and ratio of statistics turned round; smallest and largest swapped."""
    for module in ("sam", "ipr"):
        text = (CLAIMS / f"{module}.py").read_text()
        for function in ast.parse(text).body:
            if not isinstance(function, (ast.FunctionDef, ast.ClassDef)):
                continue
            for node in ast.walk(function):
                old = ast.get_source_segment(text, node) or ""
                new = ""
                if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Sub, ast.Div)):
                    left, right = (
                        ast.get_source_segment(text, side) for side in (node.left, node.right)
                    )
                    sign = "-" if isinstance(node.op, ast.Sub) else "/"
                    new = f"({right}) {sign} ({left})"
                elif isinstance(node, ast.Attribute) and node.attr in ("smallest", "largest"):
                    other = {"smallest": "largest", "largest": "smallest"}[node.attr]
                    new = old.removesuffix(node.attr) + other
                if new and isinstance(node, (ast.BinOp, ast.Attribute)):
                    start = _offset(text, node)

                    def swapped(
                        text: str, start: int = start, old: str = old, new: str = new
                    ) -> str:
                        return text[:start] + f"({new})" + text[start + len(old) :]

                    change = f"{' '.join(old.split())} to {' '.join(new.split())}"
                    yield Mutant("turned", function.name, change, module, swapped)


def _offset(text: str, node: ast.BinOp | ast.Attribute) -> int:
    lines = text.splitlines(keepends=True)
    before = sum(map(len, lines[: node.lineno - 1]))
    # Columns are counted in bytes.
    return before + len(lines[node.lineno - 1].encode()[: node.col_offset].decode())


def rules() -> Iterator[Mutant]:
    """Rules left out or changed."""
    for module, old, new in RULES:

        def changed(text: str, old: str = old, new: str = new) -> str:
            if old not in text:
                raise ValueError(f"{old!r} is no longer in the source; change RULES")
            return text.replace(old, new, 1)

        yield Mutant("rule", module, f"{old} to {new}", module, changed)
    yield Mutant(
        "rule",
        "scores",
        "independent draws in place of the paper's",
        "scores",
        lambda text: (
            text + "\nclass StudyScores(StudyScores):\n"
            "    def __init__(self, scores, *args, **more):\n"
            '        super().__init__(scores[scores["draws"] != "nested"], *args, **more)\n'
        ),
    )


def killer(mutant: Mutant) -> str:
    """What notices a mutant, in a process of its own; '' where nothing does."""
    if mutant.source is not None:
        path = CLAIMS / f"{mutant.module}.py"
        source = mutant.source(path.read_text())
        name = f"steadymap.analysis.claims.{mutant.module}"
        sys.meta_path.insert(0, Mutated(name, path, source))
    sys.path[:0] = [str(ROOT / "tests" / "analysis"), str(ROOT / "tests")]
    try:
        by_hand = importlib.import_module("by_hand")

        claims = None
        if mutant.arguments is not None:
            from steadymap.analysis.claims.verdict import read_claims

            both = [*read_claims("sam.yaml"), *read_claims("ipr.yaml")]
            (claim,) = (claim for claim in both if claim.claim == mutant.claims[0])
            claims = [replace(claim, arguments=mutant.arguments)]
        first = users(mutant.place)
        wrong = next(by_hand.mismatches(mutant.claims or None, claims, first), None)
        if wrong is not None:
            return f"claim {wrong}"
        if mutant.claims:
            return ""
        test_claims = importlib.import_module("test_claims")
    except Exception as error:
        return type(error).__name__
    for owner, name in tests_of_rules(test_claims):
        try:
            getattr(owner, name)()
        except Exception:
            return name
    return ""


def tests_of_rules(module: ModuleType) -> Iterator[tuple[Any, str]]:
    """Tests that take no fixture, of the classes that are about rules."""
    for owner in (module.TestVerdicts(), module.TestTrainings(), module.TestComparisonClaims()):
        for name, test in inspect.getmembers(owner, inspect.ismethod):
            if name.startswith("test_") and not inspect.signature(test).parameters:
                yield owner, name

    class Drawn:
        def test_a_hyperparameter_that_moves_no_mean_is_not_resolved(self) -> None:
            rng = np.random.default_rng(5)
            module.TestAccuracyClaims().test_a_hyperparameter_that_moves_no_mean_is_not_resolved(
                rng, "16"
            )

        def test_a_gain_over_nothing_is_a_difference(self) -> None:
            rng = np.random.default_rng(5)
            module.TestAccuracyClaims().test_a_gain_over_nothing_is_a_difference(rng)

        def test_fallbacks(self) -> None:
            rng = np.random.default_rng(5)
            fallbacks = module.TestFallbacks()
            fallbacks.test_a_mean_of_ratios_is_a_difference_where_one_cannot_be_formed(rng)
            fallbacks.test_a_seed_that_moves_one_image_alone_gives_differences(rng)
            fallbacks.test_the_row_whose_average_hides_least_decides(rng)

        def test_what_averages_hide(self) -> None:
            for shared, direction in ((0.0, "holds"), (1.0, "fails")):
                rng = np.random.default_rng(5)
                module.TestWhatThePaperSays().test_what_averages_hide(rng, shared, direction)

        def test_the_papers_accuracies_where_its_models_are_measured(self) -> None:
            scores = module.rows_of("SG-N", "googlenet", "ssim", np.full((module.N, 2), 0.5))
            module.TestWhatThePaperSays().test_the_papers_accuracies_where_its_models_are_measured(
                scores
            )

        def test_settings_that_differ_are_told_at_the_level(self) -> None:
            rng = np.random.default_rng(5)
            module.TestAccuracyClaims().test_settings_that_differ_are_told_at_the_level(rng)

    drawn = Drawn()
    for name in vars(Drawn):
        if name.startswith("test_"):
            yield drawn, name


def forked(batch: Sequence[Mutant]) -> list[str]:
    """`killer` of each in one child, which alone imports the package."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            found = "\n".join(killer(mutant) for mutant in batch)
        except BaseException:
            found = "!" + traceback.format_exc()
        os.write(write, found.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read()
    os.waitpid(child, 0)
    if found.startswith("!"):
        raise RuntimeError(f"{batch}\n{found[1:]}")
    return found.split("\n")


def mutants() -> list[Mutant]:
    """All of them."""
    return [*constants(), *arguments(), *turned(), *rules()]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutants whose place or change has this text")
    only = parser.parse_args(arguments).only
    for name in _BEFORE:
        importlib.import_module(name)
    if found := forked([Mutant("none", "", "")])[0]:
        raise SystemExit(f"on the package as it is, the tests fail: {found}")
    chosen = [m for m in mutants() if only in f"{m.kind} {m.place} {m.change}"]
    # Those that leave the source as it is can share a process.
    shared = [mutant for mutant in chosen if mutant.source is None]
    batches = [[shared] if shared else [], [[m] for m in chosen if m.source is not None]]
    rows = [
        (mutant.kind, mutant.place, mutant.change, killed)
        for batch in itertools.chain(*batches)
        for mutant, killed in zip(batch, forked(batch), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["kind", "place", "change", "killed_by"])
    for place, start, reason in EQUIVALENT:
        same = table["place"].eq(place) & table["change"].str.startswith(start)
        table.loc[same & table["killed_by"].eq(""), "killed_by"] = f"equivalent: {reason}"
    survivors = table[table["killed_by"] == ""]
    if not only:
        OUTPUT.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(OUTPUT, index=False)
    print(survivors.to_string() if len(survivors) else "none survives")
    print(f"{len(table) - len(survivors)} of {len(table)} mutants killed")
    raise SystemExit(int(len(survivors) > 0))


if __name__ == "__main__":
    main()
