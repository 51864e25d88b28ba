"""Numbers in slides and titles of figures: placeholders, so that no result is typed by hand.

`{methods.lora_loss}` is a quantity with its interval; `{methods.lora_loss;value}` its value alone;
`{methods.lora_minus_full_loss;below|not separable from|above}` the word for a quantity wholly below zero, not separable
from zero, or wholly above it (`;…;1` compares with 1, as `;value;1` does in a title); `{cite:ID}` a published
value; `{computed:NAME}` arithmetic; `{verdict:STUDY}` what a claim's runs decided; `{claims:OUTCOME}` how many claims
of papers have that verdict, or `all`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from peftbook.core.errors import InputError
from peftbook.core.records import Store
from peftbook.core.tracking import Reads, untracked
from peftbook.evidence import results
from peftbook.evidence.literature import published
from peftbook.studies import NAMES, Quantity, get_study

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
    """`fill`, and InputError for a value alone that may be zero, or 1: a title states what the runs show."""
    for name, line in re.findall(r"\{([\w.]+);value(?:;([\d.]+))?\}", text):
        low, high = ends(found := results.quantity(name, sources.store))
        if found.low is not None and low <= float(line or 0) <= high:
            raise InputError(
                f"The title {text!r} states {name}, which may be {line or 'zero'} ({results.format_quantity(found)}): "
                f"print its interval, {{{name}}}, or a word, {{{name};below|not separable from|above}}."
            )
    return fill(text, sources)


def placeholder(name: str, sources: Sources) -> str:
    kind, colon, rest = name.partition(":")
    if colon and kind == "cite":
        return str(published(rest))
    if colon and kind == "computed":
        from peftbook.views.slides.computed import COMPUTED  # of figures, whose titles are filled here

        if rest not in COMPUTED:
            raise InputError(f"Unknown computed value {rest!r}: choose one of {', '.join(COMPUTED)}.")
        return COMPUTED[rest]()
    if colon and kind == "verdict":
        return sources.verdict(rest)
    if colon and kind == "claims":
        with untracked():
            papers = [study for study in map(get_study, NAMES) if not (study.own or study.others)]
            verdicts = [results.study_verdict(study.name, sources.store).outcome for study in papers]
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


def ends(found: Quantity) -> tuple[float, float]:
    """The interval of a quantity, or its value twice."""
    return found.value if found.low is None else found.low, found.value if found.high is None else found.high
