"""Scores that were made elsewhere: paired by id, judged by the book's rule, and refused where they cannot be paired."""

import json
import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from peftbook import cli
from peftbook.core.errors import InputError
from peftbook.evidence.metrics import rouge
from peftbook.evidence.outside import decide
from peftbook.evidence.stats import holm, paired_interval


def write(path, rows):
    """A file with a JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def drawn(seed: int, examples: int = 300, gain: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of two models on the same questions, of which some are hard for both."""
    draw = np.random.default_rng(seed)
    easy = draw.random(examples)
    first = easy + 0.15 * draw.standard_normal(examples) > 0.5
    second = easy + gain + 0.15 * draw.standard_normal(examples) > 0.5
    return first.astype(float), second.astype(float)


def two(tmp_path, first, second, **more):
    """A decision on two lists of scores."""
    files = {
        name: [write(tmp_path / f"{name}.jsonl", ({"id": at, "acc": one} for at, one in enumerate(scores)))]
        for name, scores in (("a", first), ("b", second))
    }
    return decide(files, **more)


def test_the_difference_is_the_paired_t_test_of_scipy(tmp_path):
    """And not the unpaired one, which does not see what both find hard."""
    first, second = drawn(0, gain=0.05)
    (pair,) = two(tmp_path, second, first).pairs
    assert pair.p == pytest.approx(scipy_stats.ttest_rel(second, first).pvalue, rel=1e-6)
    ends = scipy_stats.ttest_rel(second, first).confidence_interval(0.95)
    assert (pair.difference.low, pair.difference.high) == pytest.approx((ends.low, ends.high))
    assert pair.p < scipy_stats.ttest_ind(second, first).pvalue / 5


def test_right_and_wrong_answers_give_mcnemars_statistic(tmp_path):
    """t² = (b − c)² / (b + c − (b − c)²/n) · (n − 1)/n, b and c the questions that one model alone gets right."""
    first, second = drawn(1, gain=0.04)
    n, b, c = len(first), ((first == 1) & (second == 0)).sum(), ((first == 0) & (second == 1)).sum()
    (pair,) = two(tmp_path, first, second).pairs
    square = (pair.difference.mean / pair.difference.standard_error) ** 2
    assert square == pytest.approx((b - c) ** 2 / (b + c - (b - c) ** 2 / n) * (n - 1) / n)


@pytest.mark.parametrize(
    ("gain", "margin", "said"), [(0.2, None, "worse"), (0.0, 0.2, "equivalent"), (0.0, None, "undecided")]
)
def test_outcomes(tmp_path, gain, margin, said):
    """Better and worse change places with the models, and with the sense of the measure."""
    first, second = drawn(2, gain=gain)
    turned = {"worse": "better"}.get(said, said)
    assert two(tmp_path, first, second, margin=margin).pairs[0].outcome == said
    assert two(tmp_path, second, first, margin=margin).pairs[0].outcome == turned
    assert two(tmp_path, first, second, margin=margin, lower=True).pairs[0].outcome == turned


def test_the_plan_finds_the_margin_about_four_times_in_five(tmp_path):
    """Simulated: with so many fresh examples a true difference of the margin is called."""
    first, second = drawn(3, 200)
    (pair,) = two(tmp_path, first, second, margin=0.05).pairs
    _, examples = pair.needed
    spread, draw = pair.difference.example_se * math.sqrt(200), np.random.default_rng(4)
    means = 0.05 + spread / math.sqrt(examples) * draw.standard_normal(4000)
    found = np.mean(means / (spread / math.sqrt(examples)) > 1.96)
    assert 0.77 < found < 0.85


def test_few_examples_tell_nothing(tmp_path):
    """Nor do few groups."""
    (pair,) = two(tmp_path, [1.0] * 19, [0.0] * 18 + [1.0], margin=0.9).pairs
    assert pair.outcome == "too few to tell" and pair.needed[1] >= 20
    rows = [[{"id": at, "acc": float(at % 7 > one), "page": at % 4} for at in range(60)] for one in (1, 4)]
    files = {str(one): [write(tmp_path / f"g{one}.jsonl", each)] for one, each in enumerate(rows)}
    assert decide(files, measure="acc").pairs[0].outcome == "better"
    grouped = decide(files, measure="acc", group="page")
    assert (grouped.pairs[0].outcome, grouped.arms[0].score.groups) == ("too few to tell", 4)


def test_what_never_differs_is_not_equivalent(tmp_path):
    """Nor where it differs on a few examples: their error is not known."""
    ones = [1.0] * 100
    assert two(tmp_path, ones, ones, margin=0.01).pairs[0].outcome == "identical"
    nearly = [0.0] * 3 + ones[3:]
    assert two(tmp_path, ones, nearly, margin=0.2).pairs[0].outcome == "undecided"


def test_a_difference_that_is_shown_to_be_small_is_said_so(tmp_path, capsys):
    """It is there, and does not matter."""
    first, second = drawn(9, 3000, gain=0.03)
    (pair,) = two(tmp_path, first, second, margin=0.2).pairs
    assert pair.outcome == "worse" and pair.small
    assert cli.main(["decide", *(str(tmp_path / f"{name}.jsonl") for name in "ab"), "--margin", "0.2"]) == 0
    assert "b is better than a, by less than the margin of 0.2." in capsys.readouterr().out


def test_the_order_of_lines_is_nothing_and_ids_are_all(tmp_path):
    """Paired by id: shuffled, the very same; without ids by line."""
    first, second = drawn(5, gain=0.1)
    rows = [{"id": f"q{at}", "acc": one} for at, one in enumerate(second)]
    one = write(tmp_path / "one.jsonl", [{"id": f"q{at}", "acc": each} for at, each in enumerate(first)])
    plain = decide({"a": [one], "b": [write(tmp_path / "two.jsonl", rows)]})
    np.random.default_rng(6).shuffle(rows)
    assert decide({"a": [one], "b": [write(tmp_path / "two.jsonl", rows)]}) == plain
    bare = [
        write(tmp_path / f"{name}.jsonl", [{"acc": each} for each in scores])
        for name, scores in zip("xy", (first, second), strict=True)
    ]
    assert decide({"a": bare[:1], "b": bare[1:]}) == plain


def test_seeds_are_paired_and_count(tmp_path):
    """Three seeds a model: the rule's interval over seeds and examples; of one file each, over examples alone."""
    files, drawn_scores = {"a": [], "b": []}, [drawn(seed, gain=0.1) for seed in range(3)]
    for seed, both in enumerate(drawn_scores):
        for name, scores in zip("ab", both, strict=True):
            rows = [{"id": at, "acc": one} for at, one in enumerate(scores)]
            files[name].append(write(tmp_path / f"{name}{seed}.jsonl", rows))
    (pair,) = decide(files).pairs
    assert (pair.difference.seeds, pair.outcome) == (3, "worse")
    single = decide({name: paths[:1] for name, paths in files.items()}).pairs[0].difference
    first, second = ([both[which] for both in drawn_scores] for which in (0, 1))
    assert pair.difference == paired_interval(first, second) and single.seeds == 1
    with pytest.raises(InputError, match="a 3, b 1"):
        decide({"a": files["a"], "b": files["b"][:1]})


def test_pairs_of_three_models_are_a_family(tmp_path):
    """What is better is so by Holm over all pairs."""
    scores = {"a": drawn(7)[0], "b": drawn(7, gain=0.03)[1], "c": drawn(7, gain=0.06)[1]}
    files = {
        name: [write(tmp_path / f"{name}.jsonl", [{"id": at, "acc": one} for at, one in enumerate(each)])]
        for name, each in scores.items()
    }
    found = decide(files)
    rejected = holm({(one.first, one.second): one.p for one in found.pairs})
    assert {(one.first, one.second): one.outcome in ("better", "worse") for one in found.pairs} == rejected
    assert len(found.pairs) == 3


def harness(at: int, right: float, name: str = "strict-match", **more) -> dict:
    """A line as lm-evaluation-harness logs it."""
    return {
        "doc_id": at, "doc": {"question": f"{at}?", "page": at % 12}, "target": "7", "arguments": {}, "resps": [["7"]],
        "filtered_resps": ["7"], "filter": name, "metrics": ["exact_match"], "doc_hash": f"d{at}", "prompt_hash": "p",
        "target_hash": f"t{at}", "exact_match": right,
    } | more  # fmt: skip


def test_logs_of_lm_evaluation_harness_are_read(tmp_path, capsys):
    """Its first metric, the filter that is named, groups inside the document; another version of a task is refused."""
    first, second = drawn(8, 120, gain=0.3)
    paths = []
    for name, scores in (("a", first), ("b", second)):
        rows = [harness(at, one) for at, one in enumerate(scores)]
        rows += [harness(at, 0.0, "flexible-extract") for at in range(len(scores))]
        paths.append(write(tmp_path / f"samples_{name}.jsonl", rows))
    words = ["decide", *(f"{name}={path}" for name, path in zip("ab", paths, strict=True))]
    assert cli.main(words) == 2
    assert "choose with --filter one of strict-match, flexible-extract" in capsys.readouterr().err
    assert cli.main([*words, "--filter", "strict-match"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("exact_match (more is better): 120 examples\n") and "b is better than a." in said
    assert cli.main([*words, "--filter", "strict-match", "--group", "page", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arms"][0]["score"]["groups"] == 12
    write(paths[1], [harness(at, one, "flexible-extract") for at, one in enumerate(second)])
    write(tmp_path / "only.jsonl", [harness(at, one) for at, one in enumerate(first)])
    assert cli.main(["decide", str(tmp_path / "only.jsonl"), str(paths[1])]) == 2
    assert "only.jsonl is strict-match, of" in capsys.readouterr().err
    write(paths[1], [harness(at, one, doc_hash=f"other {at}") for at, one in enumerate(second)])
    assert cli.main([*words, "--filter", "strict-match"]) == 2
    assert "another doc_hash" in capsys.readouterr().err


def test_texts_are_scored_by_rouge(tmp_path):
    """Where a row has an output and a target and no number."""
    texts = {"a": "the cat sat", "b": "a dog ran away"}
    files = {
        name: [
            write(tmp_path / f"{name}.jsonl", [{"id": at, "output": text, "target": "the cat ran"} for at in range(25)])
        ]
        for name, text in texts.items()
    }
    found = decide(files)
    wanted = rouge([*texts.values()], ["the cat ran"] * 2)["rougeL"]
    assert found.measure == "rougeL" and [one.score.mean for one in found.arms] == pytest.approx(wanted)


GOOD = [{"id": at, "acc": at % 2} for at in range(30)]


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        (GOOD[:-2], [], "lacks 2 examples that another file has (the first is '28')"),
        ([*GOOD, GOOD[3]], [], "has example '3' twice: keep one row"),
        ([{"id": at, "f1": 1.0} for at in range(30)], [], "has no 'acc' for example '0'"),
        ([{"id": at, "acc": None} for at in range(30)], [], "acc = None for example '0'"),
        ([{"id": at, "acc": math.nan} for at in range(30)], [], "acc = nan"),
        ([], [], "has no example"),
        (["a text"], [], "give a JSON object a line"),
        (GOOD, ["--margin", "0"], "A margin of 0.0"),
        (GOOD, ["--group", "page"], "no 'page' to group by"),
        (GOOD, ["--id", "name"], "has name = None"),
        ([{"acc": 1} for _ in range(30)], [], "two.jsonl the number of its line"),
        ([{"id": 1.5, "acc": 1}], [], "has id = 1.5"),
        ([{"id": at, "acc": 10**400} for at in range(30)], [], "acc = 1000"),
        (GOOD, ["--filter", "strict"], "has no example of filter 'strict'"),
        (GOOD, ["--measure", "id"], "'id' names an example"),
        (GOOD, ["--measure", "f2"], "has no 'f2' for example '0': it takes a number for each; numbers there: "),
        ([{"id": at + 100, "acc": 1} for at in range(30)], ["--common"], "No example is in all files"),
    ],
)  # fmt: skip
def test_what_cannot_be_paired_is_refused(rows, more, said, tmp_path, capsys):
    """In a sentence that names the file, the value and the fix."""
    one, two = write(tmp_path / "one.jsonl", GOOD), write(tmp_path / "two.jsonl", rows)
    assert cli.main(["decide", str(one), str(two), *more]) == 2
    assert said in capsys.readouterr().err


def test_other_files_are_refused(tmp_path, capsys):
    """None, one, the same name twice, and one that is not there."""
    one = write(tmp_path / "one.jsonl", GOOD)
    for words, said in (
        ([str(one)], "compared with none"), ([str(one), str(one)], "have one name"),
        ([str(one), str(tmp_path / "no.jsonl")], "cannot be read"), ([str(one), "b="], "names no file"),
    ):  # fmt: skip
        assert cli.main(["decide", *words]) == 2
        assert said in capsys.readouterr().err
    for at, page in enumerate(("x", "y")):
        write(tmp_path / f"g{at}.jsonl", [row | {"page": page} for row in GOOD])
    words = [str(tmp_path / f"g{at}.jsonl") for at in range(2)]
    assert cli.main(["decide", *words, "--measure", "acc", "--group", "page"]) == 2
    assert "an example is in one group" in capsys.readouterr().err
    breaks = write(tmp_path / "a=b,c.jsonl", [{"id": at, "acc": at % 3, "text": "a\u2028b\u0085c"} for at in range(30)])
    breaks.write_text(breaks.read_text().encode().decode("unicode_escape"), encoding="utf-8")
    assert cli.main(["decide", str(one), str(breaks), "--measure", "acc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["arms"][1]["name"] == "a=b,c"
    several = write(tmp_path / "several.jsonl", [row | {"f1": 0.5} for row in GOOD])
    assert cli.main(["decide", str(several), str(one)]) == 2
    assert "several numbers a row (acc, f1): name one with --measure" in capsys.readouterr().err
    assert cli.main(["decide", str(several), str(one), "--measure", "acc"]) == 0
    write(tmp_path / "two.jsonl", GOOD[5:])
    assert cli.main(["decide", str(one), str(tmp_path / "two.jsonl"), "--common"]) == 0
    assert "25 examples; 5 that not all have are left out" in capsys.readouterr().out
