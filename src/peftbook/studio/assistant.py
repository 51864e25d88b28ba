"""The process that answers questions: `python -m peftbook.studio.assistant --home H --parent PID`.

It generates text for the try-out, a token at a time and several texts in turn, checks plans before they are
submitted, a moment at a time between the tokens, and merges models for download. It runs at low priority, so that a job
that trains beside it keeps its cores; it ends by itself when nobody has asked for a while, and its models leave the
memory with it.
"""

from __future__ import annotations

import argparse
import functools
import os
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbook import specs
from peftbook.base_models import check_model
from peftbook.canonical import build
from peftbook.errors import InputError
from peftbook.processes import die_with_parent
from peftbook.studio.checking import Checking
from peftbook.studio.requests import KINDS, Request
from peftbook.studio.store import Job, Studio, ray_nodes
from peftbook.studio.trying import sampling_of
from peftbook.studio.work import sentence_for
from peftbook.training.hardware import platform_here
from peftbook.training.threads import best_threads

if TYPE_CHECKING:
    import torch

    from peftbook.studio.preflight import Check
    from peftbook.training.models import Loaded

IDLE_SECONDS = 300.0
PAUSE_SECONDS = 0.05  # between two writes of one text
STREAMS, CHECKS = 4, 4  # texts, and checks of plans, in turn
LAPSE_PAUSE = 1.0  # seconds between two looks for pages that are gone
MODELS = 4  # kept loaded; models on one base share its tensors
SPARE = 0.15  # of the memory: with less available no second model is kept
MAX_PROMPT_TOKENS = 4096


class Models:
    """The models used last, by what they are: a job's, or one as it comes."""

    def __init__(self, studio: Studio):
        self.studio = studio
        self.loaded: OrderedDict[str, Loaded] = OrderedDict()

    def of_job(self, job: Job) -> Loaded:
        """The model that a job trained, or the untuned one that it measured."""

        if job.run.budget is None and not getattr(job.run.method, "quant", ""):
            return self.as_it_comes(job.run.model, platform_here(job.run.platform), job.run.weights)

        def load() -> Loaded:
            from peftbook.studio.trained import load_trained, share_weights

            found = load_trained(self.studio, job)
            if job.run.method.shares_base:
                base = self.as_it_comes(job.run.model, platform_here(job.run.platform), job.run.weights)
                share_weights(found.model, base.model)
            return found

        return self._kept(f"{job.project}/{job.key}", load)

    def as_it_comes(self, model: specs.Model, platform: str, weights: str = "fp32") -> Loaded:
        """A model without training. weights: the type in which a job holds it."""
        from peftbook.training.models import Loaded, load_model

        def load() -> Loaded:
            check_model(model)
            found = load_model(model, None, platform, weights=weights)
            return Loaded(found.model.eval().requires_grad_(False), found.tokenizer)

        return self._kept(f"{platform}/{weights}/{model.name}/{model.revision}", load)

    def _kept(self, key: str, load: Callable[[], Loaded]) -> Loaded:
        import psutil

        if key not in self.loaded:
            memory = psutil.virtual_memory()
            while self.loaded and (len(self.loaded) >= MODELS or memory.available < SPARE * memory.total):
                self.loaded.popitem(last=False)
                memory = psutil.virtual_memory()
            self.loaded[key] = load()
        self.loaded.move_to_end(key)
        return self.loaded[key]


def continuation(
    model: Any, prompt: list[int], pick: Callable[[torch.Tensor], int], *, dtype: str = "fp32", platform: str = "cpu"
) -> Iterator[int]:
    """The ids that follow a prompt, one at a time and without end: `training.generate` for a single row.

    pick: from the next token's logits, (V,), to its id.
    """
    import torch

    from peftbook.training.forward import causal_model, start_cache
    from peftbook.training.loop import arithmetic
    from peftbook.training.products import half_products

    base: Any = causal_model(model)
    if base.config._attn_implementation != "sdpa":
        base.set_attn_implementation("sdpa")
    device = base.get_input_embeddings().weight.device
    with torch.no_grad(), half_products(platform), arithmetic(model, dtype, platform):
        cache = start_cache(model, torch.empty((1, 0), dtype=torch.long, device=device), 1)
    past = cache.get_seq_length() if cache is not None else 0
    ids = torch.tensor([prompt], device=device)
    while True:
        with torch.no_grad(), half_products(platform), arithmetic(model, dtype, platform):
            width = ids.shape[1]
            output = base.model(
                input_ids=ids,
                attention_mask=torch.ones((1, past + width), dtype=torch.long, device=device),
                position_ids=torch.arange(past, past + width, device=device)[None],
                cache=cache,
                use_cache=True,
            )
            cache, past = output.cache, past + width
            chosen = pick(base.lm_head(output.last_hidden_state[:, -1])[0])
        yield chosen
        ids = torch.tensor([[chosen]], device=device)


def choose(temperature: float, top_p: float, seed: int) -> Callable[[torch.Tensor], int]:
    """Greedy at temperature 0; else a draw from softmax(logits / temperature), of the most probable tokens that
    together have probability top_p.

    Source of the cut: Holtzman et al. 2020, arXiv:1904.09751, section 3.1.
    """
    import torch

    if temperature == 0:
        return lambda logits: int(logits.argmax())
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: torch.Tensor) -> int:
        p, order = torch.softmax(logits.float().cpu() / temperature, dim=-1).sort(descending=True)
        p[p.cumsum(dim=-1) - p >= top_p] = 0.0
        return int(order[torch.multinomial(p, 1, generator=generator)])

    return draw


@dataclass
class Stream:
    """One text under way."""

    request: str
    ids: Iterator[int]
    tokenizer: Any
    limit: int
    written: list[int] = field(default_factory=list)
    ended: bool = False
    said: float = -1e9
    result = None
    pause = PAUSE_SECONDS

    def advance(self) -> None:
        """One token more, or the end."""
        token = next(self.ids)
        self.ended = token == self.tokenizer.eos_token_id
        if not self.ended:
            self.written.append(token)
            self.ended = len(self.written) >= self.limit

    def text(self) -> str:
        """So far; while it grows, a character whose last bytes are missing waits for them."""
        text = self.tokenizer.decode(self.written, skip_special_tokens=True).strip()
        return text if self.ended else text.rstrip("\ufffd")


class Assistant:
    """The assistant at work; `tick` takes a question if there is one, adds a token to every text under way and does a
    moment's work for every check.
    """

    def __init__(self, studio: Studio):
        self.studio = studio
        self.models = Models(studio)
        self.under_way: list[Stream | Checking] = []
        self.lapsed = -1e9

    def tick(self) -> bool:
        """Do what is to be done now; False if there was nothing."""
        if time.monotonic() - self.lapsed > LAPSE_PAUSE:
            self.studio.lapse()
            self.lapsed = time.monotonic()
        request = self.studio.take(self.room())
        if request is not None:
            self.guarded(request.id, functools.partial(self.begin, request))
        under_way = list(self.under_way)
        for one in under_way:
            if not self.guarded(one.request, functools.partial(self.advance, one)) or one.ended:
                self.under_way.remove(one)
        return request is not None or bool(under_way)

    def room(self) -> list[str]:
        """The kinds of questions that can be taken now."""
        texts = sum(isinstance(one, Stream) for one in self.under_way)
        full = {"generate": texts >= STREAMS, "preflight": len(self.under_way) - texts >= CHECKS}
        return [kind for kind in KINDS if not full.get(kind)]

    def guarded(self, request: str, work: Callable[[], None]) -> bool:
        """Do some work for a request; what goes wrong is its answer, and ends nothing else."""
        try:
            work()
        except sqlite3.Error:
            raise
        except Exception as error:
            why = sentence_for(error, self.studio.home) or f"This could not be computed ({type(error).__name__})."
            self.studio.settle(request, error=why)
            return False
        return True

    def begin(self, request: Request) -> None:
        """Answer at once, or start a text or a check."""
        if request.kind == "generate":
            self.under_way.append(self.stream(request))
        elif request.kind == "preflight":
            self.under_way.append(Checking(request.id, self.preflight(request.payload)))
        elif request.kind == "gauge":
            from peftbook.studio.gauging import gauge_later

            count = gauge_later(self.studio, self.studio.jobs(request.payload["project"]))
            none = "There was nothing to measure: each run has its loss on prose, or left nothing to measure it of."
            self.studio.settle(request.id, text=f"Measured of {count} runs what they forgot." if count else none)
        else:
            from peftbook.studio.downloads import made

            path, words = made(self.studio, request)
            self.studio.settle(request.id, result={"path": str(path)}, text=words)

    def advance(self, one: Stream | Checking) -> None:
        """A token more of a text, or a moment of a check, and what there is of it to the store."""
        one.advance()
        if one.ended:
            self.studio.settle(one.request, text=one.text(), result=one.result)
        elif time.monotonic() - one.said > one.pause:
            one.ended = not self.studio.say(one.request, one.text())
            one.said = time.monotonic()

    def stream(self, request: Request) -> Stream:
        """The text that a "generate" request asks for. Raises InputError for what is out of bounds."""
        import torch

        from peftbook.tasks import Example
        from peftbook.training.encode import encode_prompt
        from peftbook.training.execute import few_shots

        asked = request.payload
        how = sampling_of(asked)
        limit, pick = how.max_new_tokens, choose(how.temperature, how.top_p, how.seed)
        task = self.studio.task(asked["project"])
        if asked.get("job"):
            job = self.studio.job(asked["job"])
            if job.project != asked["project"]:
                raise InputError(f"Job {job.id!r} is of another project: choose one of this project.")
            loaded, platform = self.models.of_job(job), platform_here(job.run.platform)
            shots, dtype = few_shots(task, job.run), job.run.evaluation.generation_dtype
        else:
            model = build(specs.Model, **asked.get("model", {}))
            platform = asked.get("platform", "cpu")
            loaded, shots, dtype = self.models.as_it_comes(model, platform), (), "fp32"
        prompt = encode_prompt(loaded.tokenizer, task, Example("typed", str(asked.get("text", "")), ""), shots)
        positions = getattr(loaded.model.config, "max_position_embeddings", None) or MAX_PROMPT_TOKENS
        most = min(MAX_PROMPT_TOKENS, positions - limit)
        if len(prompt) > most:
            raise InputError(f"The text has {len(prompt):,} tokens, and {most:,} fit before the answer: shorten it.")
        torch.set_num_threads(1 if self.trains() else best_threads())
        ids = continuation(loaded.model, prompt, pick, dtype=dtype, platform=platform)
        return Stream(request.id, ids, loaded.tokenizer, limit)

    def preflight(self, asked: dict) -> Iterator[Check | None]:
        """The steps of `plan.preflight` for the runs that a request names."""
        import psutil
        import torch

        from peftbook.studio.preflight import preflight_steps
        from peftbook.training.calibration import known_rates

        torch.set_num_threads(best_threads())  # the rates are those of so many
        runs = [specs.Run.model_validate_json(text) for text in asked["runs"]]
        task = self.studio.task(asked["project"])
        parent = psutil.Process().parent()
        family = [] if parent is None else parent.children()
        known = all(known_rates(run.platform) is not None for run in runs)
        timed = known or not self.trains()  # beside a training, measuring them takes many minutes
        nodes = ray_nodes(self.studio.home)
        room = nodes.largest_room(runs) if nodes else 0.0
        return preflight_steps(task, runs, room or memory_for(runs, family), timed=timed)

    def trains(self) -> bool:
        """Whether a job has the cores now."""
        return any(job.state == "running" for job in self.studio.jobs())


def memory_for(runs: Sequence[specs.Run], family: Sequence[Any] = ()) -> float:
    """Bytes that a job of these may take: what is free now, and what the processes in `family` (of psutil) will give
    back before it starts: the jobs under way, the assistant itself.
    """
    from peftbook.training.hardware import free_memory

    if any(run.platform == "cuda" for run in runs):
        import torch

        if torch.cuda.is_available():
            return float(torch.cuda.mem_get_info()[1])
    return free_memory(family)


def main(argv: list[str] | None = None) -> None:
    """Answer until nobody has asked for IDLE_SECONDS."""
    parser = argparse.ArgumentParser(prog="python -m peftbook.studio.assistant", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--parent", type=int, required=True)
    args = parser.parse_args(argv)
    die_with_parent(args.parent)
    os.nice(10)
    from peftbook.training.quiet import quieten_libraries

    quieten_libraries()
    assistant = Assistant(Studio(args.home, durable=False))
    last = time.monotonic()
    while time.monotonic() - last < IDLE_SECONDS:
        if assistant.tick():
            last = time.monotonic()
        else:
            time.sleep(0.1)


if __name__ == "__main__":
    main()
