"""Commands on records and claims: import, status, verify, claims."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path

from peftbook.cli.arguments import Add, on_platform, positive
from peftbook.cli.runs import store_on
from peftbook.errors import InputError


def add_commands(add: Add) -> None:
    """The commands and their options."""
    take = add("import", command_import)
    take.add_argument("file", type=Path, metavar="FILE.zip")
    status = add("status", command_status)
    on_platform(status)
    status.add_argument("-v", "--verbose", action="store_true", help="list every run")
    verify = add("verify", command_verify)
    verify.add_argument("--sample", type=positive, default=2, help="how many records (default 2)")
    verify.add_argument("--seed", type=int, default=0, help="which sample")
    claims = add("claims", command_claims)
    claims.add_argument("--json", action="store_true")
    on_platform(claims)


def command_import(args: argparse.Namespace) -> int:
    """Check and add the records of a file that `peftbook run --export` wrote; none at hand is replaced."""
    from peftbook.exchange import import_records
    from peftbook.records import default_store

    added, refused = import_records(default_store(), args.file)
    print(f"{len(added)} records added.")
    if refused:
        names = ", ".join(key[:12] for key in refused)
        raise InputError(f"{len(refused)} records differ from those at hand and were refused: {names}; delete either.")
    return 0


def command_status(args: argparse.Namespace) -> int:
    """Say for each study which runs are cached, missing, failed or stale."""
    from peftbook.results import describe, study_runs
    from peftbook.studies import NAMES, get_study

    store = store_on(args.platform)
    used: set[str] = set()
    for name in NAMES:
        found = study_runs(name, store)
        states = dict(found)
        used |= states.keys()
        missing, failed = ([state for _, state in found].count(state) for state in ("missing", "diverged"))
        print(f"{name}: {len(found) - missing} of {len(found)} runs cached, {failed} of them diverged")
        if args.verbose:
            for run in get_study(name).runs(store):
                key = store.spec(run).key
                print(
                    f"  {'missing' if states[key] == 'missing' else 'cached '} {key[:12]} {describe(store.spec(run))}"
                )
        if missing:
            print(f"  {missing} missing: run `{command_for(name, args.platform)}`")
    stale = [one.key[:12] for one in store.others(used) if one.spec.platform == args.platform and one.key not in used]
    if stale:
        print(f"{len(stale)} records belong to no study (stale): {', '.join(stale)}; delete them or restore the study")
    return 0


def command_for(study: str, platform: str) -> str:
    """The command that makes a study's missing runs on a platform."""
    from peftbook.results import run_command

    return run_command(study) + ("" if platform == "cpu" else f" --platform {platform}")


def command_verify(args: argparse.Namespace) -> int:
    """Rerun a random sample of records and compare within stated tolerances; nothing shipped is touched."""
    from peftbook.records import default_store
    from peftbook.training.verify import verify_sample

    counts: Counter[str] = Counter()
    for result in verify_sample(default_store(), args.sample, args.seed):
        print(result.sentence, flush=True)
        counts[result.outcome] += result.count
    print(", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) or "no records to verify")
    return 1 if counts["drift"] or counts["failed"] else 0


def command_claims(args: argparse.Namespace) -> int:
    """Print the verdict on each claim, in order of worth."""
    from peftbook.results import claims, count_verdicts, format_quantity

    judged = claims(store_on(args.platform))
    if args.json:
        print(json.dumps([claim_row(claim, args.platform) for claim in judged], indent=1, ensure_ascii=False))
        return 0
    for own, what in ((False, "claims"), (True, "checks of our own tools")):
        counts = count_verdicts(judged, own)
        print(f"{sum(counts.values())} {what}: " + ", ".join(f"{count} {said}" for said, count in counts.items()))
    for claim in judged:
        study, verdict = claim.study, claim.verdict
        print(f"\n{verdict.outcome.upper()}: {study.claim} [{study.source}]")
        print(f"  {study.name}: {verdict.sentence}")
        if claim.effect is not None:
            made = f"{claim.runs - claim.missing} of {claim.runs} runs"
            print(f"  {claim.name} = {format_quantity(claim.effect)} ({made})")
        elif claim.missing:
            print(f"  {claim.missing} of {claim.runs} runs are missing: {command_for(study.name, args.platform)}")
        print(f"  Refuted if: {study.refuted_if}\n  Does not show: {study.does_not_show}")
    return 0


def claim_row(claim, platform: str) -> dict:
    """A claim as plain values; the effect is null until it is known."""
    study, effect = claim.study, claim.effect
    return {
        "study": study.name, "claim": study.claim, "source": study.source, "platform": platform,
        "verdict": claim.verdict.outcome, "evidence": claim.verdict.sentence,
        "effect": None if effect is None else {
            "name": claim.name, "value": effect.value, "low": effect.low, "high": effect.high, "unit": effect.unit,
            "seeds": effect.seeds, "n": effect.n, "runs": list(effect.runs),
        },
        "refuted_if": study.refuted_if, "does_not_show": study.does_not_show, "regime": study.regime,
        "own": study.own, "chapter": study.chapter,
        "runs": claim.runs, "missing": claim.missing, "command": command_for(study.name, platform),
    }  # fmt: skip
