"""Settings of ROUGE, the noise of its bootstrap, and negated copies: definitions and laws as oracles."""

import string

import numpy as np
import pytest
from conftest import copy_records
from hypothesis import given, settings
from hypothesis import strategies as st

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.evidence import metrics
from peftbook.methods.untuned import Untuned
from peftbook.scratch.rouge import lcs_table
from peftbook.studies import get_study, methods, rouge_settings
from peftbook.tasks import task_spec
from peftbook.training.probes import measure, paraphrases
from peftbook.training.probes import rouge as probes

few = settings(max_examples=40, deadline=None)
WORDS = ("return", "Returns", "the", "The", "graph", "graphs", "node_id", "node", "id", "x.", "x", "naïve")
sentence = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(" ".join)


@few
@given(sentence, sentence)
def test_default_is_the_score_of_every_record(text, answer):
    """The setting called default is what `metrics.rouge` records."""
    assert probes.rouge_l([text], [answer], "default") == metrics.rouge([text], [answer])["rougeL"]


@few
@given(sentence, sentence)
def test_cased_scores_are_at_most_the_uncased(text, answer):
    """Case can only take matches away, and lengths stay."""
    text, answer = (one.replace("ï", "i") for one in (text, answer))  # the default tokenizer drops what is not ASCII
    assert probes.rouge_l([text], [answer], "cased")[0] <= probes.rouge_l([text], [answer], "default")[0]


@few
@given(sentence, sentence)
def test_a_tokenizer_changes_the_tokens_and_nothing_else(text, answer):
    """F = 2 LCS / (m + n) over the tokens between blanks, by the definition."""
    a, b = text.lower().split(), answer.lower().split()
    assert probes.rouge_l([text], [answer], "whitespace")[0] == pytest.approx(
        2 * lcs_table(a, b)[-1][-1] / (len(a) + len(b))
    )


@few
@given(sentence, sentence)
def test_lsum_is_l_on_texts_of_one_line(text, answer):
    """Line breaks are all that tells Lsum from L."""
    one, other = (probes.rouge_l([text], [answer], name)[0] for name in ("default", "lsum"))
    assert one == pytest.approx(other)


def test_what_each_setting_sees():
    """One example for each setting whose score must differ from the default's."""
    assert probes.rouge_l(["the graphs"], ["the graph"], "stem") == [1.0]
    assert probes.rouge_l(["the graphs"], ["the graph"], "default") == [0.5]
    assert probes.rouge_l(["THE GRAPH"], ["the graph"], "cased") == [0.0]
    assert probes.rouge_l(["the node_id"], ["the node"], "words") == [0.5]
    assert probes.rouge_l(["the node_id"], ["the node"], "default")[0] > 0.5
    assert probes.rouge_l(["naïve"], ["na ve"], "default") == [1.0]
    assert probes.rouge_l(["naïve"], ["na ve"], "words") == [0.0]
    assert probes.rouge_l(["the graph"], ["the graph."], "whitespace") == [0.5]
    swapped = (["B c. A b."], ["A b. B c."])
    assert probes.rouge_l(*swapped, "lsum_sentences")[0] > probes.rouge_l(*swapped, "default")[0]
    with pytest.raises(InputError, match="'porter'"):
        probes.rouge_l(["a"], ["a"], "porter")


def test_the_bootstrap_is_centred_on_the_mean_and_leaves_the_generator_alone():
    """The "mid" is noise around the mean, the same for the same seed; other users of NumPy's generator see nothing."""
    texts = ["the graph", "the node", "a node id", "return x", "return the graph"] * 8
    answers = ["the graph", "a graph", "the node id", "returns x", "the graph"] * 8
    np.random.seed(3)
    before = np.random.random()
    np.random.seed(3)
    mids = probes.bootstrap_mids(texts, answers, 4)
    assert np.random.random() == before
    assert mids == probes.bootstrap_mids(texts, answers, 4)
    assert len(set(mids)) > 1
    scores = metrics.rouge(texts, answers)["rougeL"]
    assert np.mean(mids) == pytest.approx(np.mean(scores), abs=np.std(scores) / len(scores) ** 0.5)


@few
@given(st.sampled_from(sorted(probes.OPENINGS)), st.text(string.ascii_letters + " ", min_size=1, max_size=20))
def test_negation_keeps_every_other_word(verb, rest):
    """A negated copy differs by "do(es) not" and the form of the verb alone."""
    negated = probes.negate(f"{verb.capitalize()} {rest}.")
    opening, not_, stem, *_ = negated.split(" ")
    assert (opening, not_) in (("Do", "not"), ("Does", "not"))
    assert verb in (stem, probes.third_person(stem))
    assert negated.endswith(f" {rest}.")


def test_negation_rules():
    """Imperative, third person, auxiliary; a sentence that is negative already or has no verb is left alone."""
    assert probes.negate("Return the graph.") == "Do not return the graph."
    assert probes.negate("Applies a filter.") == "Does not apply a filter."
    assert probes.negate("Searches a tree.") == "Does not search a tree."
    assert probes.negate("Whether x is a tree.") == "Whether x is not a tree."
    assert probes.negate("Nodes that have been seen.") == "Nodes that have not been seen."
    assert probes.negate("The volume of a cube.") is None
    assert probes.negate("Whether x is not a tree.") is None
    assert probes.negate("Returned.") is None


@few
@given(sentence, sentence, sentence)
def test_words_apart_is_a_distance(one, other, third):
    """Zero for the same words in any case, symmetric, and no shorter by way of a third text."""
    apart = paraphrases.words_apart
    assert (apart(one, other) == 0) == (one.lower().split() == other.lower().split())
    assert apart(one, other) == apart(other, one) <= apart(one, third) + apart(third, other)
    assert apart(one, f"{one} twice") == 1


def test_paraphrase_rules():
    """Words that add nothing, or another verb, where the negation has its own; nothing where either does not apply."""
    assert paraphrases.add_words("Return the graph.") == "This will return the graph."
    assert paraphrases.add_words("Applies a filter.") == "This will apply a filter."
    assert paraphrases.add_words("Whether x is a tree.") == "Whether x is indeed a tree."
    assert paraphrases.add_words("Nodes that have been seen.") == "Nodes that have indeed been seen."
    assert paraphrases.add_words("The volume of a cube.") is None
    assert paraphrases.replace_verb("Return the graph.") == "Give back the graph."
    assert paraphrases.replace_verb("Returns the graph.") == "Will give back the graph."
    assert paraphrases.replace_verb("Toggle the light.") is None
    assert paraphrases.replace_verb("Whether x is a tree.") is None
    for edit in paraphrases.KINDS.values():
        assert edit("Return whether or not x is a tree.") is None
    assert set(paraphrases.PHRASES) <= set(probes.OPENINGS)


@pytest.mark.parametrize("kind", paraphrases.KINDS)
def test_paraphrases_of_the_references_keep_every_other_word(kind):
    """As many words apart as the negation, with every word of the reference but the verb, and no two texts the same."""
    pairs = 0
    for example in probes.get_task("docstrings").splits["test"][: rouge_settings.EXAMPLES]:
        reference, negated = example.target, probes.negate(example.target)
        paraphrase = paraphrases.KINDS[kind](reference)
        if negated is None or paraphrase is None:
            continue
        pairs += 1
        assert len({text.lower() for text in (reference, negated, paraphrase)}) == 3
        assert paraphrase == paraphrases.KINDS[kind](reference)
        assert paraphrases.words_apart(paraphrase, reference) == paraphrases.words_apart(negated, reference)
        kept = reference.split()[1:] if reference.split()[0].lower() in probes.OPENINGS else reference.split()
        rest = iter(paraphrase.split())
        assert all(word in rest for word in kept)
        assert not {"not", "no", "never"} & (set(paraphrase.split()) - set(reference.split()))
    assert pairs >= 80


@pytest.mark.model
def test_the_paraphrase_probe_scores_pairs_of_equal_size():
    """Its negated copies score as in the probe of those; an unknown kind and other data are refused."""
    wanted = {**rouge_settings.references(), "examples": 20}
    found = measure(specs.Probe(measure="paraphrases.scores", settings=wanted | {"kind": "replaced"}))
    earlier = measure(specs.Probe(measure="rouge.negation", settings=wanted)).per_example
    scores = dict(zip(earlier["example"], earlier["negated_bertscore_f1"], strict=True))
    answers = [example.target for example in probes.get_task("docstrings").splits["test"][:20]]
    table = found.per_example
    assert {len(values) for values in table.values()} == {found.measurements["pairs"]}
    for at, text, edits in zip(table["example"], table["paraphrase"], table["edits"], strict=True):
        assert text == paraphrases.replace_verb(answers[int(at)])
        assert edits == paraphrases.words_apart(text, answers[int(at)])
    assert table["negated_bertscore_f1"] == pytest.approx([scores[at] for at in table["example"]], abs=1e-5)
    sizes = [found.measurements[f"paraphrase_{size}_words_apart"] for size in {int(edits) for edits in table["edits"]}]
    assert sum(sizes) == found.measurements["with_paraphrase"] <= found.measurements["opposites"]
    with pytest.raises(InputError, match="'shuffled' is unknown"):
        measure(specs.Probe(measure="paraphrases.scores", settings=wanted | {"kind": "shuffled"}))
    with pytest.raises(InputError, match="not those"):
        other = wanted | {"kind": "added", "data_sha256": "0" * 64}
        measure(specs.Probe(measure="paraphrases.scores", settings=other))


def save_texts(store: Store, examples: int) -> specs.Probe:
    """Two systems with texts for the first test examples, and a probe of them."""
    answers = [one.target for one in probes.get_task("docstrings").splits["test"][:examples]]
    runs = []
    for shots, texts in ((0, answers), (1, [text.upper() for text in answers])):
        evaluation = specs.Evaluation(split="test", n_loss=examples, n_generate=examples)
        run = specs.Run(task=task_spec("docstrings"), method=Untuned(shots=shots), evaluation=evaluation)
        store.save(Record(key=run.key, spec=run), texts)
        runs.append(run)
    wanted = {"systems": ("right", "loud"), "scorings": ("default", "cased"), "bootstrap_seeds": 3}
    return specs.Probe(measure="rouge.settings", settings=wanted, runs=tuple(runs))


def test_the_settings_probe_reads_stored_texts(tmp_path, monkeypatch):
    """References score 1 against themselves under all settings; in capitals they do so only where case is ignored."""
    monkeypatch.setenv("PEFTBOOK_RECORDS", str(tmp_path))
    probe = save_texts(Store(tmp_path), 12)
    found = measure(probe)
    assert found.measurements["right_0_default"] == found.measurements["right_0_cased"] == 1
    assert found.measurements["loud_0_default"] == 1
    assert found.measurements["loud_0_cased"] < 0.5
    assert len(found.curve["right_mid"]) == 3
    assert all(len(values) == 12 for values in found.per_example.values())
    unknown = probe.runs[0].model_copy(update={"seed": 99})
    with pytest.raises(InputError, match="no stored texts"):
        measure(probe.model_copy(update={"runs": (unknown, unknown)}))
    with pytest.raises(InputError, match="2 systems for 1 runs"):
        measure(probe.model_copy(update={"runs": probe.runs[:1]}))


@pytest.mark.model
def test_the_negation_probe_keeps_texts_and_scores_in_step():
    """Every covered reference has its negated copy and four scores; other data is refused."""
    task = task_spec("docstrings")
    wanted = {"task": task.name, "data_sha256": task.data_sha256, "examples": 20}
    found = measure(specs.Probe(measure="rouge.negation", settings=wanted))
    answers = [one.target for one in probes.get_task("docstrings").splits["test"][:20]]
    for at, text in zip(found.per_example["example"], found.per_example["negated"], strict=True):
        assert text == probes.negate(answers[int(at)])
    assert {len(values) for values in found.per_example.values()} == {found.measurements["negated_examples"]}
    assert all(score < 1 for score in found.per_example["negated_bertscore_f1"])
    with pytest.raises(InputError, match="not those"):
        measure(specs.Probe(measure="rouge.negation", settings=wanted | {"data_sha256": "0" * 64}))


def test_the_corpus_score_is_one_f_over_all_tokens(tmp_path):
    """Σ length · F / Σ length = 2 Σ LCS / Σ length: a ROUGE-L of the whole corpus, not a mean over examples."""
    store = filled(tmp_path, spread=0.1)
    record = rouge_settings.settings_record(store)
    found = rouge_settings.scores("untuned", record)[0, 0]
    length = np.array(record.per_example["untuned_0_length"])
    overlap = np.array(record.per_example["untuned_0_default"]) * length / 2
    assert found[-1] == pytest.approx(2 * overlap.sum() / length.sum())
    assert found[0] == pytest.approx(np.mean(record.per_example["untuned_0_default"]))


def filled(folder, spread: float) -> Store:
    """The final runs of `methods` and a settings record in which "stem" adds `spread` to every score; LoRA leads."""
    store = copy_records(folder, "methods")
    probe = rouge_settings.settings_probe(store)
    per_example, curve = {}, {}
    for system, run in zip(probe.settings["systems"], probe.runs, strict=True):
        base = np.array(store.get(run).per_example["rougeL"]) + 0.1 * (system == "lora")
        for name in rouge_settings.SCORINGS:
            per_example[f"{system}_{run.seed}_{name}"] = (base + spread * (name == "stem")).tolist()
        per_example[f"{system}_{run.seed}_length"] = [20.0] * len(base)
        curve[f"{system}_mid"] = [0.3, 0.301, 0.299]
    store.save(Record(key=probe.key, spec=probe, per_example=per_example, curve=curve))
    return store


@pytest.mark.parametrize(("spread", "outcome"), [(0.3, "reproduced"), (0.0, "refuted")])
def test_settings_verdict_follows_the_spread(tmp_path, spread, outcome):
    """Settings that move a system by more than methods differ bear the claim out; none refutes it."""
    study = get_study("rouge_settings")
    store = filled(tmp_path, spread)
    verdict, known = study.verdict(store), study.quantities(store)
    assert verdict.outcome == outcome
    assert known["lora_spread"].value == pytest.approx(spread)
    assert known["lora_minus_prompt_spread"].value == pytest.approx(0)  # it moves both systems alike
    assert set(verdict.quantities) <= set(known)
    assert not study.missing(store)


def save_edits(store: Store, added: float, replaced: float, *, noise: float = 0.0, score: float = 0.9) -> list[int]:
    """Records of negated copies that score so much, and of paraphrases that score so much more; their positions."""
    positions = list(range(0, 200, 2))
    wobble = noise * np.random.default_rng(0).normal(0, 1, len(positions))
    negated = {name: [score] * len(positions) for name in ("negated_bertscore_f1", "negated_rougeL")}
    shared = {"example": [float(at) for at in positions], **negated}
    other = {name: [0.2] * len(positions) for name in ("other_bertscore_f1", "other_rougeL")}
    probe = rouge_settings.negation_probe()
    store.save(Record(key=probe.key, spec=probe, per_example=shared | other | {"negated": ["Do not."] * 100}))
    for kind, more in (("added", added), ("replaced", replaced)):
        probe, own = rouge_settings.paraphrase_probe(kind), (score + more + wobble).tolist()
        scores = {"paraphrase_bertscore_f1": own, "paraphrase_rougeL": own}
        store.save(Record(key=probe.key, spec=probe, per_example=shared | scores | {"edits": [2.0] * 60 + [3.0] * 40}))
    return positions


@pytest.mark.parametrize(
    ("added", "replaced", "noise", "outcome"),
    [
        (0.0, -0.01, 0.01, "reproduced"),
        (0.01, 0.01, 0.01, "reproduced"),
        (0.05, -0.01, 0.01, "refuted"),
        (-0.01, 0.05, 0.01, "refuted"),
        (0.02, -0.01, 0.01, "undecided"),
        (0.0, 0.0, 0.5, "undecided"),
    ],
)
def test_negation_verdict_holds_opposites_against_paraphrases(tmp_path, added, replaced, noise, outcome):
    """Of both kinds: one whose paraphrases score higher refutes, both must be no higher than by the margin."""
    study, store = get_study("bertscore_negation"), copy_records(tmp_path, "methods")
    assert study.verdict(store).outcome == "not yet run"
    save_edits(store, added, replaced, noise=noise)
    verdict, known = study.verdict(store), study.quantities(store)
    assert verdict.outcome == outcome
    assert known["added_minus_negated"].value == pytest.approx(added, abs=0.2 * noise)
    assert known["added_pairs_2_words"].value + known["added_pairs_3_words"].value == known["added_pairs"].value
    assert set(verdict.quantities) <= set(known)


@pytest.mark.parametrize("score", [0.95, 0.1])
def test_the_lead_over_the_best_system_is_told_and_decides_nothing(tmp_path, score):
    """The negated copies against the arm with the highest BERTScore on the same examples: the claim's first test."""
    study, store = get_study("bertscore_negation"), copy_records(tmp_path, "methods")
    positions = save_edits(store, 0.0, 0.0, noise=0.01, score=score)
    best = max(
        np.array(methods.table(methods.final_records(arm, store), "bertscore_f1"))[:, positions].mean()
        for arm in rouge_settings.ARMS
    )
    assert study.quantities(store)["negated_minus_best"].value == pytest.approx(score - best)
    assert study.verdict(store).outcome == "reproduced"
