"""One session with the API, from a file to an adapter: an example of every route, in the order in which they are used.

The API's page shows them as commands of a shell; a test runs them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PAIRS = "".join(f"What is {n} plus one?,{n + 1}\n" for n in range(40))
ROWS = f"question,answer\n{PAIRS}"
MORE = "question,answer\n" + "".join(f"What is {n} plus one?,{n + 1}\n" for n in range(40, 60))
BEFORE = (  # in the shell: where the studio is, how it is asked, and a file of rows
    "STUDIO=http://127.0.0.1:7861/api/v1 TOKEN=…",
    'studio() { curl -sS -H "Authorization: Bearer $TOKEN" "$@"; }',
    '{ echo question,answer; for n in {0..39}; do echo "What is $n plus one?,$((n + 1))"; done; } > questions.csv',
    '{ echo question,answer; for n in {40..59}; do echo "What is $n plus one?,$((n + 1))"; done; } > more.csv',
)


FILES = ("GET /jobs/{job}/artefacts/{name}", "GET /projects/{project}/recipes/{answer}")  # kept under their own names


@dataclass(frozen=True)
class Example:
    """A request. route: of the description.  path: with `{name}` where something goes that an answer has said before.

    body: sent as JSON.  file: what is sent as it is, or announced with its length in the body.  status: of the answer.
    keep: what is kept of it under a name, by the path there.  until: a state that is waited for by asking again.
    """

    route: str
    path: str
    body: Any = None
    status: int = 200
    keep: Mapping[str, str] = field(default_factory=dict)
    until: str = ""
    file: str = ""

    @property
    def method(self) -> str:
        return self.route.partition(" ")[0]

    def command(self) -> str:
        """For a shell in which `BEFORE` was said."""
        words = ["studio"]
        if self.method != "GET":
            words.append(f"-X {self.method}")
        if self.body is not None:
            length = f"$(wc -c < {self.file})"
            body = json.dumps(self.body | {"bytes": length} if self.file else self.body)
            body = in_shell(body.replace(json.dumps(length), length))
            words += ["-H 'Content-Type: application/json'", f"-d {body}"]
        elif self.file:
            words.append(f"--data-binary @{self.file}")
        if self.route in FILES:
            words.append("-OJ")
        return f'{" ".join(words)} "$STUDIO{variables(self.path)}"'


def variables(text: str) -> str:
    """`{project}` as the shell's `$PROJECT`."""
    for name in {name for one in EXAMPLES for name in one.keep}:
        text = text.replace(f"{{{name}}}", f"${name.upper()}")
    return text


def in_shell(text: str) -> str:
    """A body, quoted; what stands for a variable of the shell is one."""
    inner = variables(text)
    if "$" not in inner:
        return shlex.quote(text)
    escaped = inner.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


NAMED = {"filename": "questions.csv", "bytes": len(ROWS)}
LATER = {"filename": "more.csv", "bytes": len(MORE)}
READING = {"input": "question", "target": "answer"}
SETTINGS = {"models": ["small-llama"], "methods": ["untuned", "lora"], "seeds": 1, "tokens": 2000, "max_new_tokens": 8,
            "learning_rates": {"lora": 0.002}}  # fmt: skip
TEXT = {"text": "What is 7 plus one?", "models": ["model:small-llama", "job:{job}"], "max_new_tokens": 16}
METRICS = {"metrics": [{"name": "sum", "kind": "number", "relative": 0.01}]}
RECIPE = {"model": "small-llama", "memory": "4GiB"}

EXAMPLES = (
    Example("GET /health", "/health"),
    Example("GET /ready", "/ready"),
    Example("POST /tokens", "/tokens", {"label": "laptop"}, 201, {"mine": "id"}),
    Example("GET /tokens", "/tokens"),
    Example("DELETE /tokens/{token}", "/tokens/{mine}", status=204),
    Example("POST /files", "/files", NAMED, 201, {"file": "id"}, file="questions.csv"),
    Example("PUT /files/{file}/content", "/files/{file}/content?offset=0", file="questions.csv"),
    Example("GET /files/{file}", "/files/{file}"),
    Example("GET /files", "/files"),
    Example("GET /files/{file}/table", "/files/{file}/table"),
    Example("POST /files/{file}/findings", "/files/{file}/findings", READING),
    Example("POST /projects", "/projects", {"file": "{file}", "name": "Questions", **READING}, 201, {"project": "id"}),
    Example("POST /files", "/files", {"filename": "left.csv", "bytes": 100}, 201, {"left": "id"}),
    Example("DELETE /files/{file}", "/files/{left}", status=204),
    Example("GET /projects", "/projects"),
    Example("GET /projects/{project}", "/projects/{project}"),
    Example("PATCH /projects/{project}", "/projects/{project}", {"name": "Plus one"}),
    Example("GET /projects/{project}/findings", "/projects/{project}/findings"),
    Example("GET /projects/{project}/rows", "/projects/{project}/rows?split=test&start=0&count=3"),
    Example("POST /projects/{project}/checks", "/projects/{project}/checks", SETTINGS, 202, {"check": "id"}),
    Example("GET /checks/{check}", "/checks/{check}", until="done"),
    Example("POST /projects/{project}/plans", "/projects/{project}/plans", {"check": "{check}"}, 201, {"plan": "id"}),
    Example("GET /projects/{project}/plans", "/projects/{project}/plans"),
    Example("GET /projects/{project}/jobs", "/projects/{project}/jobs", keep={"job": "1.id"}),
    Example("GET /jobs", "/jobs"),
    Example("POST /jobs/{job}/cancel", "/jobs/{job}/cancel"),
    Example("GET /jobs/{job}", "/jobs/{job}", until="cancelled"),
    Example("POST /jobs/{job}/resume", "/jobs/{job}/resume"),
    Example("POST /plans/{plan_id}/cancel", "/plans/{plan}/cancel"),
    Example("GET /jobs/{job}", "/jobs/{job}", until="cancelled"),
    Example("POST /jobs/{job}/retry", "/jobs/{job}/retry"),
    Example("POST /projects/{project}/plans", "/projects/{project}/plans", {"check": "{check}"}, 201, {"plan": "id"}),
    Example("GET /jobs/{job}", "/jobs/{job}", until="done"),
    Example("GET /jobs/{job}/curve", "/jobs/{job}/curve"),
    Example("GET /plans/{plan_id}", "/plans/{plan}"),
    Example("GET /projects/{project}/comparable", "/projects/{project}/comparable"),
    Example("PUT /projects/{project}/metrics", "/projects/{project}/metrics", METRICS),
    Example("GET /projects/{project}/metrics", "/projects/{project}/metrics"),
    Example("GET /projects/{project}/decision", "/projects/{project}/decision?plan={plan}&measure=rougeL"),
    Example("GET /projects/{project}/decision.txt", "/projects/{project}/decision.txt?columns=100"),
    Example("GET /projects/{project}/decision.csv", "/projects/{project}/decision.csv"),
    Example("GET /projects/{project}/decision.html", "/projects/{project}/decision.html"),
    Example("GET /projects/{project}/models", "/projects/{project}/models"),
    Example("POST /projects/{project}/answers", "/projects/{project}/answers", TEXT, 202, {"answer": "0.id"}),
    Example("GET /answers/{answer}", "/answers/{answer}", until="done"),
    Example("DELETE /answers/{answer}", "/answers/{answer}", status=204),
    Example("GET /jobs/{job}/artefacts", "/jobs/{job}/artefacts"),
    Example("GET /jobs/{job}/artefacts/{name}", "/jobs/{job}/artefacts/adapter.zip"),
    Example("POST /jobs/{job}/artefacts/{name}", "/jobs/{job}/artefacts/adapter.gguf", None, 202, {"making": "id"}),
    Example("GET /answers/{answer}", "/answers/{making}", until="done"),
    Example("GET /jobs/{job}/command", "/jobs/{job}/command"),
    Example("POST /projects/{project}/recipes", "/projects/{project}/recipes", RECIPE, 202, {"recipe": "id"}),
    Example("GET /answers/{answer}", "/answers/{recipe}", until="done"),
    Example("GET /projects/{project}/recipes/{answer}", "/projects/{project}/recipes/{recipe}"),
    Example("POST /files", "/files", LATER, 201, {"rows": "id"}, file="more.csv"),
    Example("PUT /files/{file}/content", "/files/{rows}/content", file="more.csv"),
    Example(
        "POST /jobs/{job}/continuations", "/jobs/{job}/continuations", {"file": "{rows}"}, 201, {"onward": "project"}
    ),
    Example("DELETE /projects/{project}", "/projects/{onward}", status=204),
    Example("DELETE /projects/{project}", "/projects/{project}", status=204),
)
