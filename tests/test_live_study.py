"""The study behind the training in a page: how its weights are rounded, what its runs are, when it is measured."""

from __future__ import annotations

from itertools import combinations

import contact_build as build
import pytest
import torch
from tiny import tiny_llama

from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store, default_store
from peftbook.scratch.nf4 import dequantize_nf4, quantize_nf4
from peftbook.scratch.rows import dequantize_rows, quantize_rows
from peftbook.studies import get_study, live
from peftbook.tasks import contact
from peftbook.training.live_weights import BASES, BLOCK, round_base


def test_a_rounded_weight_is_within_half_a_step_of_its_row():
    """And rounding again changes nothing."""
    w = torch.randn(5, 70, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 30, 1, 0])[:, None]
    again = dequantize_rows(*quantize_rows(w))
    assert ((again - w).abs() <= w.abs().amax(dim=1, keepdim=True) / 254 * 1.0001).all()
    torch.testing.assert_close(dequantize_rows(*quantize_rows(again)), again, rtol=1e-6, atol=0)


def test_qloras_base_has_its_linear_layers_in_nf4_and_its_embedding_in_rows():
    """Gains stay whole, and the head is the rounded embedding where they are tied."""
    model = tiny_llama()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    for name, value in round_base(model, "blocks").named_parameters():
        expected = before[name]
        if "embed_tokens" in name:
            expected = dequantize_rows(*quantize_rows(expected))
        elif expected.ndim == 2:
            expected = dequantize_nf4(*quantize_nf4(expected, BLOCK), BLOCK).view_as(expected)
        torch.testing.assert_close(value.detach(), expected, rtol=0, atol=0)
    with pytest.raises(InputError, match="Unknown base"):
        round_base(model, "columns")


def test_all_methods_see_the_same_rows_and_only_qlora_has_its_own_base():
    """Equal seeds and budgets plan equal batches; three rates a factor of 4 apart, the middle one first."""
    runs = [
        live.probe(name, rate, seed) for name, arm in live.ARMS.items() for rate in arm.rates for seed in live.SEEDS
    ]
    assert len({run.key for run in runs}) == 3 * 3 * len(live.ARMS)
    assert {run.runs[0].budget.model_copy(update={"learning_rate": 1.0}) for run in runs} == {live.budget(1.0)}
    assert {arm.base for arm in live.ARMS.values()} == set(BASES)
    for arm in live.ARMS.values():
        middle, low, high = arm.rates
        assert middle == pytest.approx(4 * low) and high == pytest.approx(4 * middle)


def test_the_study_is_measured_once_every_method_has_its_middle_rate(tmp_path):
    """Then each has a loss and a share of right answers with an interval."""
    store, study = Store(tmp_path), get_study("live")
    rng = torch.Generator().manual_seed(0)
    for name, arm in live.ARMS.items():
        for seed in live.SEEDS:
            right = (torch.rand(live.ROWS, generator=rng) < 0.6).double().tolist()
            nats = (torch.rand(live.ROWS, generator=rng) + 0.5).tolist()
            store.save(invented(live.probe(name, arm.rates[0], seed), right, nats))
    verdict, made = study.verdict(store), study.quantities(store)
    assert verdict.outcome == "measured" and set(verdict.quantities) <= set(made)
    assert all(0 <= made[f"{name}_right"].low <= made[f"{name}_right"].high <= 1 for name in live.ARMS)


def test_the_default_is_the_choice_with_the_most_right_answers_on_validation(tmp_path):
    """Of equals the one with fewer steps; then its runs are known, with seeds that chose nothing, on test rows."""
    store, best = Store(tmp_path), 0.9
    assert len(live.runs(store)) == 3 * 3 * len(live.ARMS) + len(live.CHOICES) * len(live.CHOICE_SEEDS)
    equal = {live.CHOICES[1], live.CHOICES[-1]}
    for choice in live.CHOICES:
        for each in live.choice_probes(*choice):
            assert each.runs[0].evaluation.split == "validation"
            record = invented(each, [], [])
            store.save(record.model_copy(update={"measurements": {"exact_match": best if choice in equal else 0.5}}))
    steps, rate = live.default(store)
    assert (steps, rate) == live.CHOICES[1]
    runs = live.default_probes(store)
    assert {run.key for run in runs} <= {run.key for run in live.runs(store)}
    assert [run.seed for run in runs] == list(live.DEFAULT_SEEDS)
    assert not set(live.DEFAULT_SEEDS) & set(live.CHOICE_SEEDS)
    assert {run.runs[0].evaluation.split for run in runs} == {"test"}


def test_the_default_answers_three_of_the_four_messages_with_each_seed():
    """By its records; before training it answers none. test_live holds a page to such records."""
    store, right = default_store(), [one["label"] for one in live.messages()]
    for record in store.need_all(live.default_probes(store)):
        answers = record.per_example["asked_after"]
        assert sum(map(str.__eq__, answers, right)) >= live.MESSAGES_RIGHT, f"seed {record.spec.seed}: {answers}"
        assert not set(right) & set(record.per_example["asked_before"])


def test_the_rows_are_what_the_sentences_make_and_no_wording_is_in_two_splits(capsys):
    """To the byte; a number or an address is where the label says, and the messages shown are in no split."""
    build.write()
    assert capsys.readouterr().out == contact.PATH.read_text(encoding="utf-8")
    splits = contact.load().splits
    assert {name: len(rows) for name, rows in splits.items()} == build.ROWS
    for one, other in combinations(build.ROWS, 2):
        for sentences in (*build.KEYS.values(), build.OTHERS):
            assert not set(build.part(sentences, one)) & set(build.part(sentences, other))
        assert not {row.group for row in splits[one]} & {row.group for row in splits[other]}
    rows = [row for each in splits.values() for row in each]
    assert all(("@" in row.input) == (row.target == "email") for row in rows)
    assert not {one["text"] for one in live.messages()} & {row.input for row in rows}


def invented(probe, right: list[float], nats: list[float]) -> Record:
    """A record of a training that never was."""
    return Record(
        key=probe.key,
        spec=probe,
        measurements={"trainable_parameters": 1000},
        curve={"train_loss_nats": [3.0, 2.0]},
        per_example={"exact_match": right, "loss_nats": nats, "label_tokens": [3.0] * len(right)},
        provenance={},
    )
