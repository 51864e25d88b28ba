"""Laws of the generated tasks, of the small models made for them, and of the two studies that use these."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
import torch

from peftbook import tasks
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.methods.lora import LoRA
from peftbook.methods.prefix import Prefix
from peftbook.methods.prompt import PromptTuning, virtual_tokens
from peftbook.studies import capacity, expressiveness, get_study
from peftbook.tasks import SPLITS, get_task, recall, sort
from peftbook.training.forward import apply_method, causal_model, hidden_states, trainable_state
from peftbook.training.probes import measure, synthetic

# --- generated tasks -------------------------------------------------------------------------------------------


def test_recall_pairs_are_random_and_none_is_new_in_a_held_split():
    """Nothing to generalise: a key is a key once, digits are uniform, and what is asked was shown."""
    task = recall.make(2000, 3)
    pairs = {one.input: one.target for one in task.splits["train"]}
    assert len(pairs) == 2000 and all(len(value) == recall.VALUE_DIGITS for value in pairs.values())
    assert all(pairs[one.input] == one.target for split in ("validation", "test") for one in task.splits[split])
    digits = Counter("".join(pairs.values()))
    assert set(digits) == set("0123456789") and max(digits.values()) < 1.2 * min(digits.values())
    assert math.isclose(2**recall.BITS_PER_PAIR, 10**recall.VALUE_DIGITS)


@pytest.mark.parametrize(("n", "seed"), [(50, 0), (51, 0), (50, 1)])
def test_the_hash_of_generated_pairs_follows_the_content(n, seed):
    """Two tasks with one hash would share records."""
    assert recall.make(n, seed) == recall.make(n, seed)
    others = {recall.make(*one).data_sha256 for one in {(50, 0), (51, 0), (50, 1)} - {(n, seed)}}
    assert recall.make(n, seed).data_sha256 not in others


def test_a_recall_task_of_one_pair_is_refused():
    """It would leave nothing to hold back."""
    with pytest.raises(InputError, match="n = 1"):
        recall.make(1, 0)


def test_sort_answers_are_sorted_and_no_set_is_in_two_splits():
    """The same numbers in another order would leak the answer."""
    sets: dict[str, set[frozenset[str]]] = {}
    task = get_task("sort")
    for split in SPLITS:
        sets[split] = {frozenset(one.input.split()) for one in task.splits[split]}
        assert len(sets[split]) == len(task.splits[split]) == sort.SIZES[split]
        for one in task.splits[split]:
            numbers = list(map(int, one.input.split()))
            assert list(map(int, one.target.split())) == sorted(numbers, reverse=True)
    assert not sets["train"] & sets["test"] and not sets["validation"] & (sets["train"] | sets["test"])


@pytest.mark.parametrize("module", [recall, sort])
def test_another_content_than_the_pinned_one_is_refused(module, monkeypatch):
    """A Python that draws other numbers must not pass for this one."""
    assert module.load().data_sha256 == module.SPEC.data_sha256
    pinned = module.SPEC.model_copy(update={"data_sha256": "0" * 64})
    monkeypatch.setattr(tasks, "task_spec", lambda name: pinned)
    with pytest.raises(InputError, match="not the pinned"):
        tasks.get_task.__wrapped__(pinned.name)


# --- small models ----------------------------------------------------------------------------------------------


def base(depth: int = 1, seed: int = 0):
    return synthetic.small_llama(depth, 64, 4, synthetic.VOCABULARY, seed).eval()


def test_lists_of_a_split_hold_values_that_no_other_split_has_together():
    """Ascending order of a set is one answer, whatever the order of the list."""
    lists = synthetic.lists_by_split(0, 500)
    sets = {split: {frozenset(one) for one in chosen} for split, chosen in lists.items()}
    assert not sets["train"] & sets["test"] and not sets["validation"] & (sets["train"] | sets["test"])
    assert all(len(set(one)) == synthetic.LIST_LENGTH for chosen in lists.values() for one in chosen)
    assert lists["test"] == synthetic.lists_by_split(0, 500)["test"]


def test_exactness_equals_greedy_decoding():
    """The one-pass check of a whole answer against decoding token by token."""
    model = base(2)
    lists = synthetic.lists_by_split(1, 8)
    data = [synthetic.sequence(one, "ascending", "ascending") for one in lists["train"] + lists["validation"][:24]]
    synthetic.fit(model, data[:8], 60, 8, 0.01, 0)  # learns these eight by heart, so that both outcomes occur
    written = []
    for one in data:
        ids = list(one.ids[: one.start])
        for _ in range(one.label_tokens):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        written.append(float(tuple(ids) == one.ids))
    assert synthetic.exact(model, data) == written and 0 < sum(written) < len(written)


def test_a_prompt_leaves_the_relative_attention_of_the_first_layer():
    """The theorem behind the study: over the content the weights only shrink by a common factor."""
    model = base()
    model.set_attn_implementation("eager")
    ids = torch.tensor([synthetic.sequence((3, 1, 9, 4, 12, 7), "ascending", "ascending").ids])
    embedded = model.get_input_embeddings()(ids)
    prompt = torch.randn(1, 10, embedded.shape[-1], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(inputs_embeds=embedded, output_attentions=True).attentions[0]
        shifted = model(inputs_embeds=torch.cat([prompt, embedded], 1), output_attentions=True).attentions[0]
    content = shifted[:, :, 10:, 10:]
    share = content.sum(-1, keepdim=True)
    assert torch.allclose(content / share, plain, atol=1e-5) and share.max() < 0.999


@pytest.mark.parametrize("method", [PromptTuning(length=4), Prefix(length=4), LoRA(rank=1, alpha=2)])
def test_adapting_a_copy_leaves_the_pretrained_model(method):
    """Every arm and rate must start from the same weights."""
    model = base()
    before = copy.deepcopy(model.state_dict())
    data = [synthetic.sequence(one, "descending", "ascending") for one in synthetic.lists_by_split(0, 64)["train"]]
    tuned = apply_method(copy.deepcopy(model), method, 0, synthetic.Alphabet())
    frozen = {n: v.clone() for n, v in tuned.named_parameters() if not v.requires_grad}
    started = {name: value.detach().clone() for name, value in trainable_state(tuned).items()}
    assert math.isfinite(synthetic.fit(tuned, data, 3, 16, 0.05, 0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, dict(tuned.named_parameters())[name]) for name, value in frozen.items())
    assert any(not torch.equal(value, started[name]) for name, value in trainable_state(tuned).items())


def test_a_prompt_starts_from_values_not_from_markers():
    """A marker in the prompt would announce a task by itself."""
    model = base()
    tuned = apply_method(copy.deepcopy(model), PromptTuning(length=20), 0, synthetic.Alphabet())
    table = model.get_input_embeddings().weight[: synthetic.VALUES]
    assert all((table == row).all(1).any() for row in virtual_tokens(tuned))


def test_stored_bits_of_a_guess_and_of_certainty():
    """The scale: a uniform guess stores nothing, certainty stores all, worse than a guess is not negative."""
    assert synthetic.stored_bits([math.log(256)] * 5, 256) == pytest.approx(0, abs=1e-9)
    assert synthetic.stored_bits([0.0] * 5, 256) == 40
    assert synthetic.stored_bits([100.0] * 5, 256) == 0
    assert synthetic.stored_bits([0.0, 2 * math.log(256)], 256) == pytest.approx(0, abs=1e-9)


def test_random_keys_are_different_and_values_are_values():
    """A key with two values could not be learned."""
    data = synthetic.random_pairs(3000, 16, 0)
    assert len({one.ids[:3] for one in data}) == 3000
    assert {one.ids[3] for one in data} == set(range(64, 80)) and all(max(one.ids[:3]) < 64 for one in data)
    with pytest.raises(InputError, match="different keys"):
        synthetic.random_pairs(64**3 + 1, 16, 0)


def test_the_recall_probe_stores_and_counts():
    """A short run stores something, no more than there is; the size is the study's formula; it repeats exactly."""
    adapter = capacity.SERIES["scarce"][0]
    probe = capacity.probe(adapter, 0)
    settings = probe.settings | {"pairs": 64, "exposures": 12, "batch": 16, "rates": (0.01, 0.02)}
    probe = probe.model_copy(update={"settings": settings})
    found = measure(probe)
    assert 0 < found.measurements["stored_bits"] <= found.measurements["data_bits"] == 64 * 8
    assert found.measurements["parameters"] == adapter.parameters
    assert found.measurements["stored_bits"] == max(found.curve["stored_bits"])
    assert measure(probe) == found
    fewer = measure(probe.model_copy(update={"settings": settings | {"layers": 1, "exposures": 1}}))
    assert fewer.measurements["parameters"] == adapter.parameters / 2


def test_the_sort_probe_reports_every_arm():
    """What the study reads is there, for a run too short to learn."""
    probe = expressiveness.probe(1, 0)
    short = {"pretrain_steps": 2, "steps": 2, "prompt_rates": (0.1,), "prefix_rates": (0.1,), "lora_rates": (0.01,)}
    found = measure(probe.model_copy(update={"settings": probe.settings | short}))
    for arm in expressiveness.ARMS:
        scores = found.per_example[f"{arm}_exact"]
        assert len(scores) == synthetic.HELD["test"] and set(scores) <= {0.0, 1.0}
        assert found.measurements[f"{arm}_accuracy"] == sum(scores) / len(scores)
    hidden, length = probe.settings["hidden"], probe.settings["length"]
    assert found.measurements["prompt_parameters"] == length * hidden
    assert found.measurements["prefix_parameters"] == 2 * length * hidden


def test_what_stands_before_the_list_was_never_shown():
    """No marker of pretraining announces a task to an adaptation."""
    shown = {synthetic.sequence((1, 2), "copy", task).ids[0] for task in synthetic.PRETRAINED}
    assert synthetic.sequence((1, 2), "copy", "untaught").ids[0] not in shown


def test_hidden_states_of_the_small_model_are_those_of_transformers():
    """The fast path of the training loop against the library's forward pass."""
    model = base(2)
    ids = torch.tensor([synthetic.sequence((3, 1, 9, 4, 12, 7), "copy", "copy").ids])
    with torch.no_grad():
        fast = causal_model(model).lm_head(hidden_states(model, ids, 1))
        assert torch.allclose(fast, model(ids).logits[:, 1:], atol=1e-4)


# --- verdicts --------------------------------------------------------------------------------------------------


def sort_store(
    folder,
    accuracies: dict[str, dict[int, float]],
    learned: float = 1.0,
    at_end: tuple[str, ...] = (),
    one_layer_seeds: tuple[int, ...] = expressiveness.ONE_LAYER_SEEDS,
) -> Store:
    """Records in which an arm solves a given share of the test lists at each depth.

    at_end: the arms whose best rate is the highest of their grid.
    """
    store = Store(folder)
    for seed in (*expressiveness.SEEDS, *one_layer_seeds):
        for depth in expressiveness.DEPTHS if seed in expressiveness.SEEDS else (1,):
            probe = expressiveness.probe(depth, seed)
            exact = {}
            for arm in expressiveness.ARMS:
                solved = round(512 * accuracies.get(arm, {}).get(depth, 0.0))
                exact[f"{arm}_exact"] = [1.0] * solved + [0.0] * (512 - solved)
            sizes = {f"{arm}_parameters": 10 for arm in expressiveness.ARMS}
            measured = {"pretrained_ascending_accuracy": learned, **sizes}
            curve = {}
            for arm in expressiveness.CONTEXT_ARMS:
                losses = [2.0, 1.0, 0.94 if arm in at_end else 0.96]
                curve |= {f"{arm}_rates": [0.03, 0.1, 0.3], f"{arm}_validation_loss_nats": losses}
            store.save(Record(key=probe.key, spec=probe, measurements=measured, per_example=exact, curve=curve))
    return store


ALL = dict.fromkeys(expressiveness.DEPTHS, 1.0)
CONTROLS = {"lora4": ALL, "prompt_ascending": ALL}


@pytest.mark.parametrize(
    ("accuracies", "learned", "at_end", "first", "second"),
    [
        (CONTROLS, 1.0, (), "reproduced", "refuted"),
        (CONTROLS | {"prompt": {4: 0.9, 8: 0.9}}, 1.0, (), "reproduced", "refuted"),  # not the prefix
        (CONTROLS | {"prompt": {8: 0.9}, "prefix": {8: 0.9}}, 1.0, (), "reproduced", "reproduced"),
        (CONTROLS | {"prompt": {8: 0.9}, "prefix": ALL}, 1.0, (), "refuted", "undecided"),  # depth has nothing to give
        ({"prompt": ALL}, 1.0, (), "refuted", "undecided"),
        ({}, 1.0, (), "undecided", "undecided"),
        ({"lora4": ALL}, 1.0, (), "undecided", "undecided"),  # nothing shows that a prompt can be trained
        ({"prompt_ascending": ALL}, 1.0, (), "undecided", "undecided"),
        (CONTROLS, 0.3, (), "undecided", "undecided"),
        (CONTROLS, 1.0, ("prefix",), "undecided", "undecided"),
        (CONTROLS | {"prompt": ALL}, 1.0, ("prompt",), "refuted", "refuted"),
        (CONTROLS | {"prompt": {1: 0.5, 8: 0.97}, "prefix": {8: 0.9}}, 1.0, (), "undecided", "undecided"),
    ],
)
def test_the_verdicts_on_prompts_follow_the_accuracies(tmp_path, accuracies, learned, at_end, first, second):
    """A control that fails or a rate at an end decides nothing; a prompt that solves it at depth 1 refutes anyway."""
    store = sort_store(tmp_path, accuracies, learned, at_end)
    for name, outcome in (("expressiveness", first), ("expressiveness_depth", second)):
        study = get_study(name)
        found = study.verdict(store)
        assert found.outcome == outcome, found.sentence
        assert set(found.quantities) <= set(study.quantities(store)) and not study.missing(store)


@pytest.mark.parametrize(
    ("failing", "solving", "outcome"), [(5, 0, "reproduced"), (6, 0, "undecided"), (0, 1, "refuted"), (8, 1, "refuted")]
)
def test_what_cannot_be_done_is_asked_of_models_in_which_the_rest_can(tmp_path, failing, solving, outcome):
    """Models in which a control fails are left out, down to three; one that a prompt turns round refutes anyway."""
    seeds = expressiveness.ONE_LAYER_SEEDS
    for at, seed in enumerate(seeds):
        lost = {"lora4": {1: 0.3}} if at < failing else {}
        found = {"prompt": {1: 0.9}} if at < solving else {}
        sort_store(tmp_path, CONTROLS | lost | found, one_layer_seeds=(seed,))
    verdict = get_study("expressiveness").verdict(Store(tmp_path))
    assert verdict.outcome == outcome and f"In {len(seeds) - failing} of 8" in verdict.sentence


@pytest.mark.parametrize(
    ("start", "slope", "noise", "best", "outcome", "words"),
    [
        (0, 1.5, 3, 1, "reproduced", ""),
        (0, 0.0, 0, 1, "undecided", "stored nothing"),
        (100, 0.0, 3, 1, "refuted", ""),  # nothing grows
        (1000, 0.3, 3, 1, "refuted", ""),  # it grows, but not in proportion
        (0, 0.08, 0, 1, "undecided", ""),
        (0, 1.5, 200, 1, "undecided", ""),
        (0, 1.5, 3, 2, "undecided", "end of its grid"),
        (0, 7.9, 3, 1, "undecided", "the data may be the limit"),
    ],
)
def test_the_verdict_on_capacity_asks_for_proportion(tmp_path, start, slope, noise, best, outcome, words):
    """Bits on a known line give its slope; as many bits a parameter at rank 8 as at rank 1, or it is no proportion."""
    store = Store(tmp_path)
    for probe in capacity.runs(store):
        at = 2 * 2 * 64 * probe.settings["rank"] * probe.settings["layers"]
        bits = max(0.0, start + slope * at + noise * (probe.seed - 2) * (-1) ** int(probe.settings["rank"]))
        curve = {"stored_bits": [bits if rate == best else bits / 2 for rate in range(3)]}
        store.save(Record(key=probe.key, spec=probe, measurements={"stored_bits": bits}, curve=curve))
    study = get_study("capacity")
    found = study.verdict(store)
    assert found.outcome == outcome, found.sentence
    assert words in found.sentence and set(found.quantities) <= set(study.quantities(store))
    assert study.quantities(store)["slope"].value == pytest.approx(slope, abs=0.02)


@pytest.mark.parametrize(
    ("below", "outcome", "words"), [(0.5, "reproduced", ""), (1.2, "undecided", "end of its grid")]
)
def test_where_the_lowest_rate_stores_most_a_lower_one_decides(tmp_path, below, outcome, words):
    """Of the ample adapters alone; its bits count where they are more, and once more at the end nothing is decided."""
    store, study = Store(tmp_path), get_study("capacity")
    for probe in capacity.runs(store):
        wide = probe.settings["rank"] == 8
        size = 256.0 * probe.settings["rank"] * probe.settings["layers"]
        stored = [size, size / 2, size / 4] if wide else [size / 2, size, size / 4]
        store.save(Record(key=probe.key, spec=probe, curve={"stored_bits": stored}))
    asked = study.missing(store)
    largest = capacity.SERIES["ample"][-1]
    assert asked == [capacity.probe(largest, seed, (capacity.LOWER,)) for seed in capacity.SEEDS]
    assert study.verdict(store).outcome == "not yet run"
    for probe in asked:
        store.save(Record(key=probe.key, spec=probe, curve={"stored_bits": [below * largest.parameters]}))
    found = study.verdict(store)
    assert found.outcome == outcome and words in found.sentence and not study.missing(store)
    known = study.quantities(store)
    assert known["ample_r8_bits"].value == pytest.approx(max(1, below) * largest.parameters)
    assert known["ample_r8_best_rate"].value == (capacity.LOWER if below > 1 else capacity.RATES[0])
    assert known["scarce_r8_best_rate"].value == capacity.RATES[0], "no lower rate is asked of the other series"
