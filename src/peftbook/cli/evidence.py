"""Commands on records, claims and scores: import, status, verify, claims, decide, power."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbook.cli.arguments import Add, on_platform, positive, print_json
from peftbook.cli.runs import store_on
from peftbook.core.errors import InputError
from peftbook.core.quiet import gc_paused

if TYPE_CHECKING:
    from peftbook.core.records import Store
    from peftbook.evidence.outside import Outside
    from peftbook.evidence.results import Claim

LEAST_P = 1e-12  # that is printed


def add_commands(add: Add) -> None:
    """The commands; options of those that have many are declared when they are asked for."""
    take = add("import", command_import)
    take.add_argument("file", type=Path, metavar="FILE.zip")
    status = add("status", command_status)
    on_platform(status)
    status.add_argument("-v", "--verbose", action="store_true", help="list every run")
    verify = add("verify", command_verify)
    verify.add_argument("--sample", type=positive, default=2, help="how many records (default 2)")
    verify.add_argument("--seed", type=int, default=0, help="which sample")
    claims = add("claims", command_claims)
    claims.add_argument("names", nargs="*", metavar="NAME", help="studies to print in full (default: all, a line each)")
    claims.add_argument("--json", action="store_true")
    claims.add_argument(
        "--decidable", action="store_true", help="of the open ones: what would decide, and their bounds"
    )
    on_platform(claims)
    add("decide", command_decide, decide_options)
    add("power", command_power, power_options)


def decide_options(decide: argparse.ArgumentParser) -> None:
    """Of `decide`."""
    words = "a log of lm-evaluation-harness, Inspect, promptfoo or lighteval, or scores, a JSON object a line; "
    words += "several seeds with commas; a name before = is its own"
    decide.add_argument("files", nargs="+", metavar="[NAME=]FILE[,FILE]", help=words)
    decide.add_argument(
        "--measure", default="", help="the field that is compared (default: the only number, or the first)"
    )
    decide.add_argument("--margin", type=float, help="the smallest difference that would matter")
    decide.add_argument(
        "--id", default="", metavar="FIELD", help="of an example (default: id, doc_id, …, else the line)"
    )
    decide.add_argument("--group", default="", metavar="FIELD", help="what examples share, like a document")
    decide.add_argument("--filter", default="", metavar="NAME", help="of lm-evaluation-harness, where it has several")
    decide.add_argument("--lower", action="store_true", help="less is better")
    decide.add_argument("--common", action="store_true", help="leave out examples that not all files have")
    decide.add_argument("--json", action="store_true")


def power_options(power: argparse.ArgumentParser) -> None:
    """Of `power`."""
    power.add_argument("--measure", default="rougeL", help="that will decide (default rougeL)")
    power.add_argument(
        "--margin", type=float, help="the smallest difference that would matter (default: the measure's)"
    )
    power.add_argument("--rows", type=positive, help="test rows that there are: what would they find?")
    power.add_argument("--seeds", type=positive, default=3, help="with --rows (default 3)")
    power.add_argument("--json", action="store_true")


def command_import(args: argparse.Namespace) -> int:
    """Check and add the records of a file that `peftbook run --export` wrote; none at hand is replaced."""
    from peftbook.core.exchange import import_records
    from peftbook.core.records import default_store

    added, refused = import_records(default_store(), args.file)
    print(f"{len(added)} records added.")
    if refused:
        names = ", ".join(key[:12] for key in refused)
        raise InputError(f"{len(refused)} records differ from those at hand and were refused: {names}; delete either.")
    return 0


@gc_paused()  # a quarter of the command's time
def command_status(args: argparse.Namespace) -> int:
    """Say for each study which runs are cached, missing, failed or stale."""
    from peftbook.evidence.results import describe, study_runs
    from peftbook.studies import NAMES, get_study

    store, used = store_on(args.platform), set[str]()
    for name in NAMES:
        if not (found := study_runs(name, store)):  # runs of others
            continue
        states = dict(found)
        used |= states.keys()
        missing, failed = ([state for _, state in found].count(state) for state in ("missing", "diverged"))
        diverged = f", {failed} of them diverged" if failed else ""
        print(f"{name}: {len(found) - missing} of {len(found)} runs cached{diverged}")
        if args.verbose:
            for run in get_study(name).runs(store):
                key = store.spec(run).key
                print(
                    f"  {'missing' if states[key] == 'missing' else 'cached '} {key[:12]} {describe(store.spec(run))}"
                )
        if missing:
            print(f"  {missing} missing: run `{command_for(name, args.platform)}`")
    stale = [one for one in store.others(used) if one.spec.platform == args.platform and one.key not in used]
    if stale:
        print(f"{len(stale)} records belong to no study any more" + "; --verbose lists them" * (not args.verbose))
    for one in stale if args.verbose else ():
        print(f"  stale   {one.key[:12]} {describe(one.spec)}")
    return 0


def command_for(study: str, platform: str) -> str:
    """The command that makes a study's missing runs on a platform."""
    from peftbook.evidence.results import run_command

    return run_command(study) + ("" if platform == "cpu" else f" --platform {platform}")


def command_verify(args: argparse.Namespace) -> int:
    """Rerun a random sample of records and compare within stated tolerances; nothing shipped is touched."""
    from peftbook.core.records import default_store
    from peftbook.runtime.verify import verify_sample

    counts: Counter[str] = Counter()
    for result in verify_sample(default_store(), args.sample, args.seed):
        print(result.sentence, flush=True)
        counts[result.outcome] += result.count
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "no records to verify")
    return 1 if counts["drift"] or counts["failed"] else 0


@gc_paused()  # judging makes no reference cycles
def command_claims(args: argparse.Namespace) -> int:
    """Print the verdict on each claim, a line each in order of worth; the whole of those named; or what would decide
    those that are open.
    """
    from peftbook.evidence.results import claim, claims, count_verdicts

    store = store_on(args.platform)
    if args.decidable:
        return print_outlooks(store, args.json)
    judged = [claim(name, store) for name in args.names] or claims(store)
    if args.json:
        print_json([claim_row(one, args.platform) for one in judged])
    elif args.names:
        print("\n\n".join(claim_text(one, args.platform) for one in judged))
    else:
        for own, others, what in (
            (False, False, "claims of papers"),
            (True, False, "of our own claims and tools"),
            (False, True, "claims on public runs of others"),
        ):
            counts = count_verdicts(judged, own, others)
            print(f"{sum(counts.values())} {what}: " + ", ".join(f"{count} {said}" for said, count in counts.items()))
        print(f"{sum(one.study.measures for one in judged)} measurements, which judge no claim")
        wide = max(len(one.study.name) for one in judged)
        for one in judged:
            print(f"{one.verdict.outcome:21} {one.study.name:{wide}} {one.study.title}")
        print("\nOne in full: peftbook claims NAME")
    return 0


def claim_text(claim: Claim, platform: str) -> str:
    """A claim with its verdict, its effect, what would refute it and what it does not show."""
    from peftbook.evidence.decidable import bound
    from peftbook.evidence.results import format_quantity

    study, verdict = claim.study, claim.verdict
    lines = [f"{verdict.outcome.upper()}: {study.claim} [{study.source}]", f"{study.name}: {verdict.sentence}"]
    if claim.effect is not None:
        made = "runs of others" if study.others else f"{claim.runs - claim.missing} of {claim.runs} runs"
        lines.append(f"{claim.name} = {format_quantity(claim.effect)} ({made})")
    elif claim.missing:
        lines.append(f"{claim.missing_runs}: {command_for(study.name, platform)}")
    lines += [said] if (said := bound(claim)) else []
    lines += [f"Refuted if: {study.refuted_if}", f"Does not show: {study.does_not_show}"]
    return "\n  ".join(lines)


def print_outlooks(store: Store, as_json: bool) -> int:
    """Print for each open claim what would decide it, in how many core-hours, and the bound that it gives now."""
    from peftbook.evidence.decidable import AT_HAND, outlooks

    found = outlooks(store)
    if as_json:
        print_json(found)
        return 0
    wide = max((len(one.study) for one in found), default=0)
    for one in found:
        print(f"{one.study:{wide}}  {one.outcome:14}  {one.plan}")
        print(f"{'':{wide}}  {'':14}  {one.bound}")
    near = [one for one in found if one.within(AT_HAND) and one.outcome == "undecided"]
    print(
        f"\nUndecided claims that new runs decide in {AT_HAND:g} core-hours each: {len(near)}, more seeds four times in"
    )
    print("five if the present estimate is the truth. A finer grid and other inputs may move the estimate too.")
    return 0


def claim_row(claim: Claim, platform: str) -> dict:
    """A claim as plain values; the effect is null until it is known."""
    from peftbook.evidence.decidable import bound

    study, effect, of_effect = claim.study, claim.effect, ("value", "low", "high", "unit", "seeds", "n", "runs")
    return {
        "study": study.name,
        "claim": study.claim,
        "source": study.source,
        "platform": platform,
        "verdict": claim.verdict.outcome,
        "evidence": claim.verdict.sentence,
        "bound": bound(claim),
        "effect": effect and {"name": claim.name, **{name: getattr(effect, name) for name in of_effect}},
        **{
            name: getattr(study, name) for name in ("refuted_if", "does_not_show", "regime", "own", "others", "chapter")
        },
        "runs": claim.runs,
        "missing": claim.missing,
        "command": command_for(study.name, platform),
    }


def command_decide(args: argparse.Namespace) -> int:
    """Say which of several models is better on the same examples, from scores that were made elsewhere."""
    from dataclasses import asdict

    from peftbook.evidence.outside import LEVEL, decide

    files = dict(named_files(text) for text in args.files)
    if len(files) < len(args.files):
        raise InputError("Two of the files have one name: write them as NAME=FILE.")
    found = decide(
        files,
        measure=args.measure,
        key=args.id,
        kept=args.filter,
        group=args.group,
        margin=args.margin,
        lower=args.lower,
        common=args.common,
    )
    if args.json:
        body = asdict(found) | {"level": LEVEL, "files": {name: [*map(str, each)] for name, each in files.items()}}
        for one, arm in zip(body["arms"], found.arms, strict=True):
            one["score"] |= {"low": arm.score.low, "high": arm.score.high}
        for one, pair in zip(body["pairs"], found.pairs, strict=True):
            one["difference"] |= {"low": pair.difference.low, "high": pair.difference.high}
        print_json(body)
    else:
        print("\n".join(decided(found)))
    return 0


def named_files(text: str) -> tuple[str, list[Path]]:
    """A model's name, and its files. A file that is there under the whole text is that file."""
    name, mark, rest = text.partition("=")
    if not mark or Path(text).is_file():
        name, rest = "", text
    paths = [Path(rest)] if Path(rest).is_file() else [Path(part) for part in rest.split(",") if part]
    if not paths:
        raise InputError(f"{text!r} names no file: write it as NAME=FILE.")
    return name or paths[0].stem, paths


def decided(found: Outside) -> list[str]:
    """What was decided, in lines."""
    arms = found.arms
    seeds, examples, groups = len(arms[0].scores), arms[0].score.examples, arms[0].score.groups
    basis = f"{examples:,} examples" + f" in {groups} groups" * bool(groups) + f", {seeds} seeds" * (seeds > 1)
    lines = [f"{found.measure} ({'less' if found.lower else 'more'} is better): {basis}"]
    lines[0] += f"; {found.left_out} that not all have are left out" * bool(found.left_out)
    wide = max(len(one.name) for one in arms)
    lines += [f"  {one.name:{wide}}  {one.score.mean:.4f} [{one.score.low:.4f}, {one.score.high:.4f}]" for one in arms]
    for pair in found.pairs:
        one, p = pair.difference, f"p = {pair.p:.2g}" if pair.p > LEAST_P else f"p < {LEAST_P:g}"
        lines.append(f"{pair.first} − {pair.second}: {one.mean:+.4f} [{one.low:+.4f}, {one.high:+.4f}], {p}")
        lines += [f"  {words}" for words in found.verdict(pair)]
    if len(found.pairs) > 1:
        lines.append("Intervals are of 95 % each; better is said for all pairs together, by Holm at 5 %,")
        lines.append("equivalent of each pair by itself.")
    if seeds == 1:
        lines.append("Intervals are over examples: what another seed would change is not in them.")
    return lines


def command_power(args: argparse.Namespace) -> int:
    """Say how many seeds and test rows a comparison needs, from the spread of the book's runs, before any training."""
    from peftbook.core.records import default_store
    from peftbook.decision import MEASURES, check_choices
    from peftbook.decision.power import detectable_difference, needed, spreads
    from peftbook.evidence.stats import FEWEST_EXAMPLES, FEWEST_SEEDS

    check_choices(args.measure, margin=args.margin)
    if args.margin == 0:
        raise InputError("No number of test rows finds a difference of 0: give the smallest that would matter.")
    if args.seeds < FEWEST_SEEDS:
        raise InputError(f"--seeds {args.seeds} cannot show what others would change: give {FEWEST_SEEDS} or more.")
    if args.rows and args.rows < FEWEST_EXAMPLES:
        raise InputError(f"{args.rows} test rows decide nothing: give {FEWEST_EXAMPLES} or more.")
    measure = MEASURES[args.measure]
    margin = measure.margin if args.margin is None else args.margin
    known = spreads(default_store().all(), measure)
    if not known:
        raise InputError(f"No run at hand was scored by {args.measure!r} with three seeds: choose another measure.")
    shares = {"half of them": 0.5, "nine of ten": 0.9}
    rows: list[dict[str, Any]] = [
        {
            "task": one.task,
            "model": one.model,
            "groups": one.intervals[0].groups,
            "pairs": one.intervals,
            "needed": {word: needed(one, margin, share) for word, share in shares.items()},
            "found": {
                word: detectable_difference(one, args.rows, args.seeds, share)
                for word, share in shares.items()
                if args.rows
            },
        }
        for one in known
    ]
    if args.json:
        print_json({"measure": measure.name, "margin": margin, "spreads": rows})
        return 0
    unit = f" {measure.unit}" if measure.unit else ""
    print(f"{measure.label}: two trained arms, of which a difference is found about four times in five")
    for one in rows:
        count, groups = len(one["pairs"]), f", test rows in {one['groups']} groups" * bool(one["groups"])
        print(f"\n{one['task']}, {one['model']}, by {count} pair{'s' * (count > 1)} of arms of our own{groups}")
        for word, plan in one["needed"].items():
            takes = f"takes {plan[0]} seeds and {plan[1]:,} test rows" if plan else "is out of reach"
            print(f"  a difference of {margin}{unit} {takes} in {word}")
        for word, size in one["found"].items():
            print(f"  {args.seeds} seeds and {args.rows:,} test rows find {size:.3f}{unit} in {word}")
    print("\nTake the task that is most like yours. More methods in one table need more.")
    return 0
