"""`peftbook same`: ten seeded faults are found and named, and clean exports of a model raise no alarm."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import SEVEN, gguf_from_arrays
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from peftbook import cli
from peftbook.core.base_models import model_named
from peftbook.scratch.codebooks import quantise_dense
from peftbook.views.export import gguf_model, served
from peftbook.views.export.roads import load_road
from peftbook.views.export.same import Parting, Road, compare_roads, log_probabilities

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message.role }}]{{ message.content }}{{ eos_token }}"
    "{% endfor %}[assistant]"
)


@pytest.fixture(autouse=True, scope="module")
def quick_gguf() -> Iterator[None]:
    with gguf_from_arrays():
        yield


def save_base(folder: Path, seed: int = 0) -> Path:
    """A small random Llama with a tokenizer and a template of its own."""
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    special = {"bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.1}
    config = LlamaConfig(**sizes, **special, num_key_value_heads=2, vocab_size=320, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(folder)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train([__file__], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: Path, seed: int = 0, targets: tuple[str, ...] = SEVEN, size: float = 0.05) -> Path:
    """An adapter that holds something, as after training."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=list(targets))
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(seed + 3)
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if "lora_B" in name:
                value.copy_(size * torch.randn(value.shape, generator=generator))
    tuned.save_pretrained(folder)
    return folder


def merged(base: Path, adapter: Path, dtype: torch.dtype = torch.float32):
    """peft's own merge, in the type of the base."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return PeftModel.from_pretrained(plain, adapter).merge_and_unload()


def save_merged(folder: Path, base: Path, model) -> Path:
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A base and an adapter, and the base of another seed."""
    place = tmp_path_factory.mktemp("same")
    save_base(place / "base")
    save_base(place / "other", seed=9)
    save_adapter(place / "adapter", place / "base")
    return place


@pytest.fixture(scope="module")
def first(place) -> tuple[Road, torch.Tensor]:
    """The reference: base and adapter."""
    road = Road(str(place / "adapter"), load_road(str(place / "adapter")))
    return road, log_probabilities(road.loaded.model, road.sequences)


def held(first: tuple[Road, torch.Tensor], folder: Path) -> Parting:
    return compare_roads(first[0], Road(str(folder), load_road(str(folder))), first[1])


# --- faults ----------------------------------------------------------------------------------------------------------


def with_tokenizer(change: Callable) -> Callable[[Path, Path], Path]:
    """A merged folder whose tokenizer was changed."""

    def seed(place: Path, out: Path) -> Path:
        save_merged(out, place / "base", merged(place / "base", place / "adapter"))
        tokenizer = AutoTokenizer.from_pretrained(out)
        change(tokenizer)
        tokenizer.save_pretrained(out)
        return out

    return seed


def other_template(tokenizer) -> None:
    tokenizer.chat_template = TEMPLATE.replace("[assistant]", "[model]")


def no_bos(tokenizer) -> None:
    tokenizer.chat_template = TEMPLATE.replace("{{ bos_token }}", "")


def two_bos(tokenizer) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + TEMPLATE


def added_token(tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("rivers")])


def quantised(place: Path, out: Path) -> Path:
    with torch.no_grad():
        return save_merged(out, place / "base", quantise_dense(merged(place / "base", place / "adapter"), "nf4"))


def rounded_twice(place: Path, out: Path) -> Path:
    """Merged in bfloat16, and saved as float32."""
    return save_merged(out, place / "base", merged(place / "base", place / "adapter", torch.bfloat16).float())


def missing(place: Path, out: Path) -> Path:
    return save_merged(out, place / "base", AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32))


def on_another_base(place: Path, out: Path) -> Path:
    return save_merged(out, place / "base", merged(place / "other", place / "adapter"))


def changed_config(change: dict) -> Callable[[Path, Path], Path]:
    """The adapter with another configuration."""

    def seed(place: Path, out: Path) -> Path:
        shutil.copytree(place / "adapter", out)
        config = out / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
        return out

    return seed


def targets_missed(place: Path, out: Path) -> Path:
    """Of the MLP nothing was merged."""
    plain = AutoModelForCausalLM.from_pretrained(place / "base", dtype=torch.float32).state_dict()
    model = merged(place / "base", place / "adapter")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".mlp." in name:
                value.copy_(plain[name])
    return save_merged(out, place / "base", model)


def twice(place: Path, out: Path) -> Path:
    save_merged(out / "once", place / "base", merged(place / "base", place / "adapter"))
    return save_merged(out, place / "base", merged(out / "once", place / "adapter"))


def penalised(place: Path, out: Path) -> Path:
    model = merged(place / "base", place / "adapter")
    model.generation_config.repetition_penalty = 1.3
    return save_merged(out, place / "base", model)


FAULTS = {
    "another chat template": (with_tokenizer(other_template), "template", "another chat template"),
    "missing BOS": (with_tokenizer(no_bos), "template", "'<s>' at the start is missing"),
    "BOS twice": (with_tokenizer(two_bos), "template", "'<s>' at the start is added, or twice"),
    "added token": (with_tokenizer(added_token), "template", "added tokens differ: 'rivers'"),
    "quantised": (quantised, "logits", "quantisation"),
    "rounded before": (rounded_twice, "logits", "merge rounding"),
    "adapter missing": (missing, "logits", "adapter missing"),
    "another base": (on_another_base, "logits", "another base"),
    "alpha lost": (changed_config({"lora_alpha": 4}), "logits", "alpha lost"),
    "targets missed": (targets_missed, "logits", "targets missed"),
    "merged twice": (twice, "logits", "merged twice"),
    "sampling": (penalised, "answers", "sampling"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_named(place, first, tmp_path, name):
    seed, stage, words = FAULTS[name]
    found = held(first, seed(place, tmp_path / "road"))
    assert found.stage == stage and words in found.words, found


@pytest.mark.parametrize("targets", [SEVEN, ("q_proj", "v_proj")])
@pytest.mark.parametrize("size", [0.05, 0.005])
def test_two_trainings_are_no_fault_of_an_export(place, first, tmp_path, targets, size):
    """Adapters on one base with other weights, also small ones and on other matrices; merged or not."""
    save_adapter(tmp_path / "adapter", place / "base", 7, targets, size)
    save_merged(tmp_path / "merged", place / "base", merged(place / "base", tmp_path / "adapter"))
    for name in ("adapter", "merged"):
        found = held(first, tmp_path / name)
        assert found.stage == "logits" and "another training" in found.words, found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_clean_exports_raise_no_alarm(tmp_path, dtype, seed):
    """Merged in float32 and rounded once, merged in the type itself, and the adapter saved again: nine of each."""
    base = save_base(tmp_path / "base", seed)
    adapter = save_adapter(tmp_path / "adapter", base, seed)
    road = Road(str(adapter), load_road(str(adapter)))
    first = road, log_probabilities(road.loaded.model, road.sequences)
    save_merged(tmp_path / "rounded", base, merged(base, adapter).to(dtype))
    save_merged(tmp_path / "within", base, merged(base, adapter, dtype))
    shutil.copytree(adapter, tmp_path / "again")
    for name in ("rounded", "within", "again"):
        found = held(first, tmp_path / name)
        assert not found.stage, (name, found)


@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_a_gguf_file_is_the_same_model(place, first, tmp_path, dtype, capsys):
    """By the command, whose status says so; the base alone is not."""
    file = tmp_path / "merged.gguf"
    words = ["export", str(place / "adapter"), "--merged", "--gguf", str(file), "--dtype", dtype]
    assert cli.main(words) == 0
    assert cli.main(["same", str(place / "adapter"), str(file)]) == 0
    assert f"{file}: same: " in capsys.readouterr().out
    plain = model_named(str(place / "base"))
    gguf_model.write_model(gguf_model.load_base(plain), tmp_path / "base.gguf", dtype, plain)
    assert cli.main(["same", str(place / "adapter"), str(tmp_path / "base.gguf")]) == 1
    assert "adapter missing" in capsys.readouterr().out


def test_a_chat_with_two_models_keeps_the_turns_of_each(place, monkeypatch, capsys):
    """An adapter beside its base, by lines; what was said before changes an answer, and an empty line forgets it."""
    lines = iter(["Name a river.", "Name a river.", "", "Name a river."])
    monkeypatch.setattr("peftbook.cli.chat.typed", lambda: lines)
    words = ["chat", str(place / "adapter"), "--against", str(place / "base"), "--max-new-tokens", "6"]
    assert cli.main(words) == 0
    told = capsys.readouterr().out.split(f"{place / 'adapter'}: ")[1:]
    assert len(told) == 3 and told[0] == told[2] != told[1] and all(f"{place / 'base'}: " in one for one in told)
    assert cli.main([*words, "--instruction", "Say it"]) == 2
    assert "{input}" in capsys.readouterr().err


def test_a_chat_begins_with_the_system_prompt_of_the_training(place, tmp_path, capsys):
    """As if it were given, which is said; another one, or none, takes its place in silence."""
    shutil.copytree(place / "adapter", tmp_path / "out")
    words = ["chat", str(tmp_path / "out"), "--message", "Name a river.", "--max-new-tokens", "6"]
    said = [(cli.main([*words, "--system", text]), *capsys.readouterr()) for text in ("Speak of rivers.", "")]
    (tmp_path / "out/system.txt").write_text("Speak of rivers.")
    status, answer, told = (cli.main(words), *capsys.readouterr())
    assert status == 0 and answer == said[0][1] != said[1][1] and "Speak of rivers." in told
    assert cli.main([*words, "--system", ""]) == 0 and capsys.readouterr().out == said[1][1]
    assert not any("System prompt" in err for _, _, err in said)


# --- servers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    """Starts a server with OpenAI's routes over a road in bfloat16, as vLLM answers; returns its address."""
    started = []

    def start(road: Road, pick: int = 0, tokenize: bool = True) -> str:
        tokenizer, model = road.loaded.tokenizer, road.loaded.model

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_) -> None:
                pass

            def say(self, body: dict) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.say({"data": [{"id": "tiny"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                chat = {"add_generation_prompt": True, "return_dict": False}
                ids = tokenizer.apply_chat_template(body["messages"], **chat)
                if self.path == "/tokenize":
                    self.say({"tokens": ids} if tokenize else {})
                    return
                count, steps = len(ids), []
                while len(steps) < body["max_tokens"]:
                    tops = log_probabilities(model, [ids])[-1].topk(5)
                    spelled = [
                        (tokenizer.decode([one]), p) for p, one in zip(*map(torch.Tensor.tolist, tops), strict=True)
                    ]
                    ids.append(tops.indices[pick].item())
                    steps.append({"token": tokenizer.decode(ids[-1:]), "top_logprobs": [
                        {"token": one, "logprob": p} for one, p in spelled]})  # fmt: skip
                    if ids[-1] == tokenizer.eos_token_id:
                        break
                message = {"content": tokenizer.decode(ids[count:], skip_special_tokens=True)}
                choice = {"message": message, "logprobs": {"content": steps}}
                self.say({"choices": [choice], "usage": {"prompt_tokens": count}})

        server = HTTPServer(("127.0.0.1", 0), Handler)
        started.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/v1"

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_a_server_is_the_same_model_or_not(place, first, tmp_path, serve):
    """What vLLM does to a merged folder in bfloat16 is within the bound; the base, a template and sampling are not."""
    road, own = first
    save_merged(tmp_path / "bf16", place / "base", merged(place / "base", place / "adapter", torch.bfloat16))
    right = Road(str(tmp_path / "bf16"), load_road(str(tmp_path / "bf16")))
    for value in right.loaded.model.parameters():
        value.data = value.data.bfloat16()
    assert not (found := served.compare_served(road, serve(right), own=own)).stage, found
    assert not served.compare_served(road, serve(right, tokenize=False), own=own).stage
    plain = Road(str(place / "base"), load_road(str(place / "base")))
    found = served.compare_served(road, serve(plain), own=own)
    assert found.stage == "logits" and "adapter missing" in found.words
    found = served.compare_served(road, serve(right, pick=1), own=own)
    assert found.stage == "answers" and "sampling" in found.words
    no_bos(right.loaded.tokenizer)
    assert served.compare_served(road, serve(right), own=own).stage == "template"


def test_what_is_no_road_is_refused_in_a_sentence(place, tmp_path, capsys):
    for name in (tmp_path / "none.gguf", tmp_path, "http://127.0.0.1:9"):
        assert cli.main(["same", str(place / "adapter"), str(name)]) == 2
        err = capsys.readouterr().err
        assert str(name) in err and "Traceback" not in err
