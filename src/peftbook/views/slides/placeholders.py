"""Numbers in the outline: placeholders, so that no result is typed by hand.

`{methods.lora_loss}` is a quantity with its interval; `{methods.lora_loss;value}` its value alone;
`{methods.lora_minus_full_loss;below|not separable from|above}` the word for a quantity wholly below zero, not separable
from zero, or wholly above it (`;…;1` compares with 1); `{cite:ID}` a published value; `{computed:NAME}` arithmetic;
`{verdict:STUDY}` what a claim's runs decided; `{claims:OUTCOME}` how many claims of papers have that verdict, or `all`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.core.tracking import Reads, untracked
from peftbook.evidence import results
from peftbook.evidence.literature import published
from peftbook.memory import SHAPES, training_step
from peftbook.studies import NAMES, get_study
from peftbook.views.figures import costs, fit, lora, machines, prompt, quantisation
from peftbook.views.figures.charts import ends

SUPERSCRIPTS = str.maketrans("−0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass
class Sources:
    """What a slide's text and visuals were made from: runs, as they are tracked, and verdicts, in order of use."""

    store: Store
    runs: Reads = field(default_factory=Reads)
    verdicts: dict[str, str] = field(default_factory=dict)

    def verdict(self, study: str) -> str:
        """What a claim's runs decided; it is noted by the study's name, not by its runs."""
        with untracked():
            self.verdicts[study] = results.study_verdict(study, self.store).outcome
        return self.verdicts[study]

    def demand(self, verdicts: dict[str, str]) -> None:
        """Raise InputError unless the records say what the slide's words rest on."""
        for study, wanted in verdicts.items():
            if (outcome := self.verdict(study)) != wanted:
                raise InputError(
                    f"The words rest on {study} being {wanted}, the records say {outcome}: "
                    f"run `{results.run_command(study)}` or rewrite them."
                )


def fill(text: str, sources: Sources) -> str:
    """Replace every placeholder; marks of code are dropped. Raises InputError for an unknown or missing one."""
    filled = re.sub(r"\{([^{}]+)\}", lambda match: placeholder(match[1], sources), text.replace("`", ""))
    filled = re.sub(r"10\^([−\d]+)", lambda match: "10" + match[1].translate(SUPERSCRIPTS), filled)
    return re.sub(r"(?<=[\d\]]) (?=[×%]|[kMGT]?B\b)|(?<=×) (?=10)", "\N{NO-BREAK SPACE}", filled)


def fill_title(text: str, sources: Sources) -> str:
    """`fill`, and InputError for a value alone that may be zero: a title states what the runs show."""
    for name in re.findall(r"\{([\w.]+);value\}", text):
        low, high = ends(found := results.quantity(name, sources.store))
        if found.low is not None and low <= 0 <= high:
            raise InputError(
                f"The title {text!r} states {name}, which may be zero ({results.format_quantity(found)}): "
                f"print its interval, {{{name}}}, or a word, {{{name};below|not separable from|above}}."
            )
    return fill(text, sources)


def placeholder(name: str, sources: Sources) -> str:
    kind, colon, rest = name.partition(":")
    if colon and kind == "cite":
        return str(published(rest))
    if colon and kind == "computed":
        if rest not in COMPUTED:
            raise InputError(f"Unknown computed value {rest!r}: choose one of {', '.join(COMPUTED)}.")
        return COMPUTED[rest]()
    if colon and kind == "verdict":
        return sources.verdict(rest)
    if colon and kind == "claims":
        verdicts = list(outcomes(sources.store).values())
        return str(len(verdicts) if rest == "all" else verdicts.count(rest))
    name, *forms = name.split(";")
    quantity = results.quantity(name, sources.store)
    if not forms:
        return results.format_quantity(quantity)
    if forms[0] == "value":
        return results.format_quantity(quantity, interval=False)
    words = forms[0].split("|")
    if len(words) != 3:
        raise InputError(
            f"Placeholder {{{name};{forms[0]}}} is not valid: write ';value' or three words 'below|neither|above'."
        )
    pivot = float(forms[1]) if len(forms) > 1 else 0.0
    low, high = ends(quantity)
    return words[0] if high < pivot else words[2] if low > pivot else words[1]


def outcomes(store: Store) -> dict[str, str]:
    """Study → what its runs decided, in order of worth, of the papers' claims that our runs decide."""
    with untracked():
        studies = [study for study in map(get_study, NAMES) if not (study.own or study.others)]
        return {study.name: results.study_verdict(study.name, store).outcome for study in studies}


def gigabytes(method: str) -> str:
    return f"{sum(costs.state_bytes(method).values()) / 1e9:.1f} GB"


def nf4_share(pick: Callable[[Any], float]) -> str:
    return f"{100 * float(pick(quantisation.bin_shares(quantisation.nf4_levels(), 64))):.1f} %"


def per_rank(targets: str) -> int:
    return lora.parameters_per_rank(lora.TARGETS[targets])


def stack_peak(stack: str) -> str:
    """Peak of a QLoRA step in a stack of `figures.fit`."""
    return f"{fit.stack_peaks(stack)['QLoRA'] / 1e9:.0f} GB"


def device_peak(method: str, devices: int) -> str:
    """Peak of a step of Llama-2-70B on each of so many devices, a row of 2,048 tokens on each."""
    setup = replace(machines.BY_DEVICES[method][0], devices=devices)
    return f"{training_step(SHAPES['llama-2-70b'], setup).peak().total / 1e9:,.0f} GB"


COMPUTED: dict[str, Callable[[], str]] = {
    "state_full_7b": lambda: gigabytes("full"),
    "state_lora_7b": lambda: gigabytes("lora"),
    "state_qlora_7b": lambda: gigabytes("qlora"),
    "lora_r16_parameters": lambda: f"{16 * per_rank('all linear'):,}",
    "lora_r16_percent": lambda: f"{1600 * per_rank('all linear') / lora.SMOLLM2.parameters:.1f} %",
    "lora_qv_r1_parameters": lambda: f"{per_rank('q and v'):,}",
    "prompt_20_parameters": lambda: f"{prompt.prompt_parameters(20):,}",
    "prompt_tokens_of_lora_qv_r1": lambda: f"{per_rank('q and v') // prompt.prompt_parameters(1)}",
    "all_over_qv": lambda: f"{per_rank('all linear') / per_rank('q and v'):.1f}",
    "matrix_percent": lambda: f"{100 * 16 * 2 / 576:.1f} %",
    "nf4_share_least": lambda: nf4_share(lambda shares: shares.min()),
    "nf4_share_most": lambda: nf4_share(lambda shares: shares.max()),
    "equal_share": lambda: f"{100 / 16:.2f} %",
    "bits_single": lambda: f"{quantisation.bits_per_parameter(64, False):.3g}",
    "bits_double": lambda: f"{quantisation.bits_per_parameter(64, True):.3f}",
    "nf4_error": lambda: f"{quantisation.mean_squared_error(quantisation.nf4_levels(), 64):.4f}",
    "int4_error": lambda: f"{quantisation.mean_squared_error(quantisation.codebooks()['INT4'], 64):.4f}",
    "shard_full_1": lambda: device_peak("Full", 1),
    "shard_lora_1": lambda: device_peak("LoRA", 1),
    "shard_qlora_1": lambda: device_peak("QLoRA", 1),
    "stack_own_qlora": lambda: stack_peak("Own loop, peft"),
    "stack_trl_qlora": lambda: stack_peak("TRL, bf16 weights"),
    "shard_full_16": lambda: device_peak("Full", 16),
    "shard_lora_16": lambda: device_peak("LoRA", 16),
    "shard_qlora_16": lambda: device_peak("QLoRA", 16),
}
