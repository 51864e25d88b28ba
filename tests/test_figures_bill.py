"""What the figures of the bill draw: the byte model's own peak and state, and the limits of the ratio of times."""

import numpy as np
import pytest

from peftbook.memory import SHAPES, Setup, training_step
from peftbook.methods.lora import LoRA
from peftbook.views.figures import bill

SETUPS = {
    "full": Setup(method="full", seq=256),
    "lora": Setup(method="lora", seq=256),
    "prompt on NF4": Setup(method="prompt", seq=256, quantised="nf4"),
}


@pytest.mark.parametrize("model", ["smollm2-135m", "llama-2-7b", "gemma-3-1b"])
@pytest.mark.parametrize("setup", SETUPS.values(), ids=list(SETUPS))
def test_the_highest_place_is_the_peak(model: str, setup: Setup):
    """Of the moments inside layers most are left out; the peak is not one of them."""
    shape = SHAPES[model]
    places, parts = bill.timeline(shape, setup)
    assert (np.diff(places) > 0).all()
    assert sum(parts.values()).max() == pytest.approx(training_step(shape, setup).peak().total)


def test_a_step_ends_with_the_state_and_all_gradients():
    """When Adam runs, activations are gone: eight bytes a weight are left in bfloat16."""
    shape = SHAPES["llama-2-7b"]
    _, parts = bill.timeline(shape, SETUPS["full"])
    last = {part: sizes[-1] for part, sizes in parts.items()}
    assert last["weights"] == last["gradients"] == last["two moments"] / 2 == 2 * shape.parameters
    assert sum(last.values()) == pytest.approx(8 * shape.parameters, rel=1e-3)


def test_every_term_of_the_byte_model_is_drawn():
    """No bytes are lost between the model's kinds and the parts of the drawing."""
    drawn = {kind for kinds, *_ in bill.PARTS.values() for kind in kinds}
    for setup in SETUPS.values():
        assert set(training_step(SHAPES["llama-2-7b"], setup).peak().terms) <= drawn


@pytest.mark.parametrize("card", ["a100", "h100"])
def test_time_is_two_thirds_where_products_take_all_of_it(card: str):
    """Many tokens: three products against two. Few: a product moves two bytes a weight, Adam fourteen."""
    ratios = [bill.time_ratio(tokens, bill.balance(card)) for tokens in np.geomspace(1, 1e9, 60)]
    assert ratios[0] == pytest.approx(2 * 2 / (3 * 2 + 14))
    assert ratios[-1] == pytest.approx(2 / 3, rel=1e-4)
    assert (np.diff(ratios) >= 0).all()


def test_adapters_have_the_published_number_of_parameters():
    """LoRA on q and v at rank 4 is what the paper adapts: 2 L r (d_in + d_out)."""
    shape = SHAPES["llama-2-7b"]
    assert LoRA(rank=4, targets=("q_proj", "v_proj")).parameters(shape) == 2 * 32 * 4 * (4096 + 4096)
    assert LoRA(rank=1).parameters(shape) == 2_498_560
