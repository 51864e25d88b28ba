"""BERTScore with the embedded encoder, and both scores through Hugging Face `evaluate`, offline."""

from __future__ import annotations

import socket
import warnings

import evaluate
import pytest
from safetensors import safe_open

from peftbook.core.errors import InputError
from peftbook.evaluate_metric import PATH
from peftbook.evidence import metrics
from peftbook.tasks import file_sha256
from peftbook.training import scoring
from peftbook.training.scoring import bertscore, embedded_encoder

PREDICTIONS = ["Return the sum of two numbers.", "A cat sat on the mat.", "Compute x.", "Open a file", "sum"]
REFERENCES = ["Return the total of two numbers.", "The dog barked.", "Compute the x value.", "Close the file.", "add"]


def test_identical_texts_score_1():
    """Every token finds itself, cosine 1."""
    assert bertscore(REFERENCES, REFERENCES) == pytest.approx([1.0] * 5, abs=1e-5)


def test_scores_equal_bert_scores_functional_interface():
    """The oracle is the package's own `score`, called with the same encoder and layer."""
    import bert_score

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, _, f1 = bert_score.score(
            PREDICTIONS,
            REFERENCES,
            model_type=str(scoring.embedded_folder()),
            num_layers=6,
            device="cpu",
            idf=False,
            rescale_with_baseline=False,
        )
    assert bertscore(PREDICTIONS, REFERENCES) == pytest.approx(f1.tolist(), abs=1e-5)


def test_nearer_texts_score_higher():
    """The score ranks a paraphrase above another subject, and stays within [−1, 1]."""
    scores = bertscore(PREDICTIONS, REFERENCES)
    assert scores[0] > scores[1] and all(-1 <= score <= 1 for score in scores)


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_an_empty_text_scores_0_and_moves_no_other(empty):
    """bert_score itself crashes on it; a model that writes nothing earns nothing."""
    filled = bertscore(PREDICTIONS, REFERENCES)
    with_gap = bertscore([*PREDICTIONS[:2], empty, *PREDICTIONS[2:]], [*REFERENCES[:2], "a", *REFERENCES[2:]])
    assert with_gap[2] == 0 and with_gap[:2] + with_gap[3:] == pytest.approx(filled, abs=1e-6)
    assert bertscore([empty], ["a"]) == bertscore(["a"], [empty]) == [0.0]
    assert bertscore([], []) == []


def test_scores_do_not_depend_on_batch_or_order():
    """Padding inside the encoder is masked."""
    whole = bertscore(PREDICTIONS, REFERENCES)
    assert bertscore(PREDICTIONS[::-1], REFERENCES[::-1])[::-1] == pytest.approx(whole, abs=1e-5)
    assert bertscore(PREDICTIONS, REFERENCES, batch_size=1) == pytest.approx(whole, abs=1e-5)


def test_long_texts_are_cut_not_crashed():
    """The encoder has 512 positions; a runaway generation must not stop an evaluation."""
    (score,) = bertscore(["word " * 3000], ["word"])
    assert 0 < score <= 1


def test_the_encoder_says_what_the_score_depends_on():
    """Name, layer, hash and rescaling stand in every record; the hash is that of the file in use, of 6 layers."""
    encoder = embedded_encoder()
    weights = scoring.embedded_folder() / "model.safetensors"
    assert encoder.keys() == {"name", "layer", "sha256", "rescaled"}
    assert encoder["sha256"] == file_sha256(weights) and encoder["rescaled"] is False
    with safe_open(weights, "pt") as file:
        layers = {name.split("layer.")[1].split(".")[0] for name in file.keys() if "layer." in name}  # noqa: SIM118
    assert len(layers) == encoder["layer"]


def test_predictions_and_references_pair_up():
    """One sentence instead of a wrong mean."""
    with pytest.raises(InputError, match="1 predictions for 2 references"):
        bertscore(["a"], ["a", "b"])


# ---- evaluate.load(PATH)


@pytest.fixture
def offline(monkeypatch):
    """Any attempt to reach a network fails the test."""

    def refuse(*_, **__):
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_evaluate_loads_the_metric_without_a_network(offline, tmp_path):
    """Means of the same per-pair scores that the records hold, and the encoder beside them."""
    metric = evaluate.load(PATH, cache_dir=str(tmp_path))
    scores = metric.compute(predictions=PREDICTIONS, references=REFERENCES)
    for kind, values in metrics.rouge(PREDICTIONS, REFERENCES).items():
        assert scores[kind] == pytest.approx(sum(values) / 5)
    assert scores["bertscore_f1"] == pytest.approx(sum(bertscore(PREDICTIONS, REFERENCES)) / 5, abs=1e-6)
    assert scores["bertscore_encoder"] == embedded_encoder()
    assert set(scores) == {"rouge1", "rouge2", "rougeL", "bertscore_f1", "bertscore_encoder"}


def test_the_metric_accumulates_batches(offline, tmp_path):
    """`add_batch` in an evaluation loop gives what one call gives."""
    whole = evaluate.load(PATH, cache_dir=str(tmp_path)).compute(predictions=PREDICTIONS, references=REFERENCES)
    metric = evaluate.load(PATH, cache_dir=str(tmp_path))
    for at in (0, 2, 4):
        metric.add_batch(predictions=PREDICTIONS[at : at + 2], references=REFERENCES[at : at + 2])
    assert metric.compute()["rougeL"] == pytest.approx(whole["rougeL"])
