"""One session with the studio's API, from a file to an adapter: an example of every route, in order of use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PAIRS = "".join(f"What is {n} plus one?,{n + 1}\n" for n in range(40))
ROWS = f"question,answer\n{PAIRS}"


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


NAMED = {"filename": "questions.csv", "bytes": len(ROWS)}
READING = {"input": "question", "target": "answer"}
SETTINGS = {"models": ["small-llama"], "methods": ["untuned", "lora"], "seeds": 1, "tokens": 2000, "max_new_tokens": 8,
            "learning_rates": {"lora": 0.002}}  # fmt: skip
TEXT = {"text": "What is 7 plus one?", "models": ["model:small-llama", "job:{job}"], "max_new_tokens": 16}
METRICS = {"metrics": [{"name": "sum", "kind": "number", "relative": 0.01}]}

EXAMPLES = (
    Example("GET /health", "/health"),
    Example("GET /ready", "/ready"),
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
    Example("GET /projects/{project}/judgements", "/projects/{project}/judgements"),
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
    Example("DELETE /projects/{project}", "/projects/{project}", status=204),
)
