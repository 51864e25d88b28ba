"""Formats of a frozen base: what the probe counts and measures, and what its records decide."""

import numpy as np
import pytest
import torch

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.core.records import Record, Store
from peftbook.scratch.codebooks import codebook, linear_layers, round_trip
from peftbook.scratch.gptq import gptq, input_moment
from peftbook.studies import bases, get_study
from peftbook.training.models import load_model
from peftbook.training.probes import bases as probes
from peftbook.training.probes import measure

SMALL = specs.SMALL_LLAMA


def probe_of(seed: int = 0, **settings) -> specs.Probe:
    chosen = {
        "source": "small",
        "formats": ("nf4", "rtn_2"),
        "scored": ("rtn_2",),
        "group": 64,
        "texts": 2,
        "stride": 40,
    }
    chosen |= {"calibration_tokens": 256} | settings
    return specs.Probe(measure="bases.format_errors", settings=chosen, model=SMALL, seed=seed)


def test_bytes_errors_and_losses_are_those_of_the_formats():
    """Bits by the formula, the weight error by hand, and a loss that two bits raise."""
    found = measure(probe_of())
    weights = [part.weight.detach() for part in linear_layers(load_model(SMALL).model).values()]
    count = sum(w.numel() for w in weights)
    assert found.measurements["parameters"] == count
    assert 8 * found.measurements["nf4_bytes"] / count == 4.5
    assert 8 * found.measurements["rtn_2_bytes"] / count == 2 + 18 / 64
    error = sum((w - round_trip(w, "nf4")).square().sum() / w.square().mean() for w in weights) / count
    assert found.measurements["nf4_mse"] == pytest.approx(float(error), rel=1e-4)
    assert 0 < found.measurements["nf4_output"] < found.measurements["rtn_2_output"] < 1
    assert len(found.per_example["nf4_output"]) == len(weights)
    assert np.sum(found.per_example["rtn_2"]) > np.sum(found.per_example["full"])
    assert len(found.per_example["full"]) == len(found.per_example["label_tokens"])


def test_only_known_formats_of_the_small_llama_are_measured():
    """A name that is not known is an error and not a column of zeros."""
    with pytest.raises(InputError, match="Unknown format 'nf5'"):
        measure(probe_of(formats=("nf5",)))
    with pytest.raises(InputError, match="not on 'smollm2'"):
        measure(probe_of(source="smollm2"))


def test_layers_that_share_inputs_share_their_moments():
    """q, k and v read one input, gate and up another; the moment is that of the inputs themselves."""
    model = load_model(SMALL).model
    layers, (piece,) = linear_layers(model), probes.known_pieces(load_model(SMALL).tokenizer, 8, 8, 0)[:1]
    seen = {}
    handles = [
        part.register_forward_pre_hook(lambda _module, given, name=name: seen.__setitem__(name, given[0][0]))
        for name, part in layers.items()
    ]
    found = probes.input_moments(model, [piece], layers)
    for handle in handles:
        handle.remove()
    assert found.keys() == layers.keys()
    for name, moments in found.items():
        torch.testing.assert_close(moments.H, input_moment(seen[name]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(moments.magnitude, seen[name].abs().mean(dim=0))


def test_gptq_goes_through_the_layers_in_order():
    """The first decoder layer sees the inputs of the unquantised model, later ones those of what is quantised."""
    loaded = load_model(SMALL)
    layers = linear_layers(loaded.model)
    weights = {name: part.weight.detach().clone() for name, part in layers.items()}
    pieces = probes.known_pieces(loaded.tokenizer, 128, 128, 0)
    plain = probes.input_moments(loaded.model, pieces, layers)
    found = probes.quantised_layers("gptq_4", loaded.model, plain, pieces, 64)
    first, later = (f"model.layers.{index}.self_attn.q_proj" for index in (0, 3))
    alike = gptq(weights[first], plain[first].H, 4).weight, gptq(weights[later], plain[later].H, 4).weight
    assert torch.equal(found[first].weight, alike[0]) and not torch.equal(found[later].weight, alike[1])
    for name, part in layers.items():
        assert torch.equal(part.weight, found[name].weight)


def test_constants_in_half_width_leave_the_nearest_level_but_for_their_rounding():
    """No weight is further from its level than from the nearest one by more than the constant was rounded."""
    w = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    found = probes.halved(w, "nf4")
    absmax = w.view(-1, 32).abs().amax(dim=1).half().float()[:, None]
    nearest = (codebook("nf4") * absmax[..., None] - w.view(-1, 32, 1)).abs().amin(dim=-1)
    excess = (found.weight - w).view(-1, 32).abs() - nearest
    assert excess.min() > -1e-6 and (excess < 2**-10 * absmax).all() and (excess < 1e-6).float().mean() > 0.99
    assert 8 * sum(part.nbytes for part in found.arrays) / w.numel() == 4.5


# --- verdicts ----------------------------------------------------------------------------------------------------

COST = {"rtn": 0.2, "hqq": 0.2, "awq": 0.15, "gptq": 0.1}


def filled(folder, cost=COST, noise=1e-3, mxfp4=0.02, spread=0.01, texts=40) -> Store:
    """A store in which the ways of two bits add these nats a token."""
    store = Store(folder)
    for probe in bases.runs(store):
        rng = np.random.default_rng(probe.seed)
        text = 3 + rng.normal(0, 0.3, texts)
        measured, sums = {"parameters": 1 << 20}, {"full": (10 * text).tolist()}
        for name in bases.FORMATS:
            way = name.partition("_")[0]
            added = cost.get(way, 0.001)
            output = (mxfp4 if name == "mxfp4" else 0.01) * np.exp(rng.normal(0, spread))
            measured |= {f"{name}_bytes": 1 << 19, f"{name}_mse": output, f"{name}_output": output}
            sums[name] = (10 * (text + added + rng.normal(0, noise, texts))).tolist()
        per_example = {"label_tokens": [10.0] * texts, "kind": ["prose"] * texts, **sums}
        store.save(Record(key=probe.key, spec=probe, measurements=measured, per_example=per_example))
    return store


@pytest.mark.parametrize(
    ("gptq", "noise", "outcome"),
    [(0.1, 1e-3, "reproduced"), (0.3, 1e-3, "refuted"), (0.2, 1e-3, "undecided"), (0.1, 2.0, "undecided")],
)
def test_gptq_is_held_against_what_round_to_nearest_costs(tmp_path, gptq, noise, outcome):
    """Half of the cost, half as much again, the same, and a cost that is not known."""
    found = get_study("bases_gptq").verdict(filled(tmp_path, COST | {"gptq": gptq}, noise))
    assert found.outcome == outcome, found.sentence


@pytest.mark.parametrize(
    ("hqq", "outcome"), [(0.09, "reproduced"), (0.11, "reproduced"), (0.2, "fails in this regime"), (0.12, "undecided")]
)
def test_hqq_may_lose_a_tenth_of_that_cost_more_than_gptq(tmp_path, hqq, outcome):
    """A tenth of 0.2 nats is the edge."""
    found = get_study("bases_hqq").verdict(filled(tmp_path, COST | {"hqq": hqq}, noise=3e-3))
    assert found.outcome == outcome, found.sentence


@pytest.mark.parametrize(
    ("mxfp4", "spread", "outcome"),
    [(0.02, 0.01, "reproduced"), (0.012, 0.01, "refuted"), (0.0141, 0.2, "undecided")],
)
def test_mxfp4_is_allowed_what_its_bits_explain(tmp_path, mxfp4, spread, outcome):
    """Twice NVFP4's error is more than a quarter of a bit explains, 1.2 times is less."""
    found = get_study("bases_mxfp4").verdict(filled(tmp_path, mxfp4=mxfp4, spread=spread))
    assert found.outcome == outcome, found.sentence


def test_quantities_have_bits_errors_and_costs_of_every_format(tmp_path):
    """And the deciding ones are among those that the verdicts name."""
    store = filled(tmp_path)
    known = bases.quantities(store)
    for name in bases.FORMATS:
        assert {f"{name}_{what}" for what in ("bits", "mse", "output")} <= known.keys()
        assert (f"{name}_cost" in known) == (name in bases.SCORED)
    for study in ("bases_gptq", "bases_hqq", "bases_mxfp4"):
        assert set(get_study(study).verdict(store).quantities) <= known.keys()
