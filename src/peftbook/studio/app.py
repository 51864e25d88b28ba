"""The studio's web service: `peftbook studio`. It shows and asks; a worker process computes.

This process never imports torch or transformers, holds no state that a restart would lose, and opens no file whose name
came from outside: projects and jobs are looked up by their ids.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from peftbook.errors import InputError, need
from peftbook.studio.access import Door, host_of
from peftbook.studio.drafts import Drafts, plain_name
from peftbook.studio.login import add_login
from peftbook.studio.machine import examine_apart
from peftbook.studio.people import Logins, People
from peftbook.studio.store import Studio, say_open, start_worker
from peftbook.studio.tokens import Keys, Owner
from peftbook.tasks.table import Caps

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

HERE = Path(__file__).resolve().parent
FONTS = (HERE / "fonts", HERE.parents[2] / "book" / "assets" / "fonts")  # of a wheel, of a checkout
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
KEEPER_SECONDS = 3.0
NICE = 10
NO_EVENT = "There is no such event: load the page again.\n"
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


def serve(
    home: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7861,
    login_file: Path | None = None,
    worker: bool = True,
    caps: Caps | None = None,
    token: bool = True,
    names: Sequence[str] = (),
) -> int:
    """Serve until interrupted. Raises InputError for a host that others reach without a login, and a port in use.

    token: without a login file, let in only who has the token in the address that is printed.  names: under which a
    proxy reaches it.
    """
    logins = Logins(login_file) if login_file is not None else None
    if host not in ("127.0.0.1", "localhost", "::1") and logins is None:
        raise InputError(f"Host {host!r} opens the studio to others: give a --login-file, or leave out --host.")
    if odd := next((name for name in names if host_of(name) != name.lower()), None):
        raise InputError(f"The name {odd!r} is none: give it as it stands in the address, without a port.")
    need("gradio", "The studio")
    studio = Studio(home)
    listening = listen(host, port)
    stop = threading.Event()
    keeper = threading.Thread(target=keep_worker, args=(studio.home, stop), daemon=True)
    if worker:
        keeper.start()  # before this thread turns nice: what it starts inherits its own priority
    if sys.platform == "linux":
        os.nice(NICE)  # of this thread and those that it starts, not of the keeper
    import uvicorn

    examine_apart()
    people: People | None = logins or (Owner(studio.home) if token else None)
    shown = f"[{host}]" if ":" in host else host
    app = build_app(studio, caps or Caps(), people=people, hosts=(*LOOPBACK, shown, *names))
    secret = f"?token={people.token}" if isinstance(people, Owner) else ""
    address = f"http://{shown}:{listening.getsockname()[1]}/{secret}"
    print(f"The studio is at {address} and keeps its data in {studio.home}.", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, ws="none", timeout_graceful_shutdown=2
    )
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        stop.set()
        listening.close()
    return 0


def listen(host: str, port: int) -> Any:
    """A listening socket. Raises InputError where there can be none."""
    import socket

    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"Port {port} of {host!r} cannot be used ({error.strerror}): give another --port.") from None


def keep_worker(home: Path, stop: threading.Event) -> None:
    """Start a worker whenever none is alive, and keep it from ending while the studio is open."""
    while not stop.is_set():
        with contextlib.suppress(Exception):
            say_open(home)
            start_worker(home)
        stop.wait(KEEPER_SECONDS)


# --- routes ----------------------------------------------------------------------------------------------------


def build_app(
    studio: Studio, caps: Caps, *, people: People | None = None, hosts: tuple[str, ...] = LOOPBACK
) -> Callable[..., Any]:
    """The ASGI application: our routes, the API, then Gradio's page, behind the door.

    people: who may come in; everybody on this machine without.
    """
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1"),
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    import gradio as gr
    from fastapi import FastAPI

    from peftbook.studio.api import build_api
    from peftbook.studio.pages import build_pages
    from peftbook.studio.pages.theme import HEAD, THEME

    drafts = Drafts(studio.home, caps)
    keys = None if people is None else Keys(studio.home, people)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_files(app)
    add_uploads(app, drafts)
    add_downloads(app, studio)
    app.mount("/api/v1", build_api(studio, drafts, keys))
    if keys is not None:
        add_login(app, keys)
    page = build_pages(studio, drafts, caps, with_login=isinstance(people, Logins))
    off = dict.fromkeys(("run_history", "show_error", "ssr_mode", "pwa", "enable_monitoring", "mcp_server"), False)
    app = gr.mount_gradio_app(app, page, "/", footer_links=[], max_file_size=1, theme=THEME, head=HEAD, **off)
    refuse_unknown_events(app)
    return Door(app, hosts, keys)


def refuse_unknown_events(app: FastAPI) -> None:
    """Gradio's page looks up an event by its number, and has no answer of its own for one that it does not have."""
    from fastapi.responses import PlainTextResponse
    from gradio.route_utils import FnIndexInferError

    inner: Any = app.routes[-1]
    for kind in (KeyError, FnIndexInferError):
        inner.app.add_exception_handler(kind, lambda *_: PlainTextResponse(NO_EVENT, 404))


def add_files(app: FastAPI) -> None:
    """Style sheet, script, icon and fonts: a fixed list, read once."""
    from fastapi import Response

    found = {path.name: path for path in (HERE / "style.css", HERE / "page.js", HERE / "icon.svg")}
    fonts = next((folder for folder in FONTS if folder.is_dir()), None)
    if fonts is not None:
        found |= {f"fonts/{path.name}": path for path in fonts.glob("*.woff2")}
    for name, path in found.items():
        kept = "public, max-age=86400" if path.suffix == ".woff2" else "no-cache"
        answer = Response(path.read_bytes(), media_type=KINDS[path.suffix], headers={"cache-control": kept})
        app.add_api_route(f"/studio/{name}", lambda answer=answer: answer, methods=["GET"], response_model=None)


def add_uploads(app: FastAPI, drafts: Drafts) -> None:
    """Take the bytes of a file as they come, and stop at the cap."""
    from fastapi import Request
    from fastapi.responses import JSONResponse

    async def upload(request: Request) -> Response:
        draft = drafts.new(plain_name(unquote(request.headers.get("x-filename", ""))))
        try:
            announced = request.headers.get("content-length", "0")
            if announced.isdigit() and int(announced) > drafts.caps.bytes:
                raise drafts.too_large()
            with drafts.receiving(draft.id) as write:
                async for block in request.stream():
                    write(block)
            return JSONResponse({"draft": drafts.end(draft.id).id})
        except InputError as error:
            drafts.drop(draft.id)
            return JSONResponse({"error": str(error)}, 413, headers={"connection": "close"})
        except BaseException:
            drafts.drop(draft.id)
            raise

    upload.__annotations__["request"] = Request  # FastAPI reads it where it cannot see this scope
    app.add_api_route("/studio/upload", upload, methods=["POST"], response_model=None)


def add_downloads(app: FastAPI, studio: Studio) -> None:
    """What can be taken away, by the ids of project and job."""
    from fastapi import Response
    from fastapi.responses import FileResponse, PlainTextResponse

    from peftbook.studio import report
    from peftbook.studio.decisions import FIRST_COST, FIRST_MEASURE, compared, evaluations, whole_report
    from peftbook.studio.downloads import file_of, slug, title_of

    def of_job(project_id: str, job_id: str, what: str) -> Response:
        job = studio.job(job_id)
        if job.project != project_id:
            raise InputError(f"Project {project_id!r} has no job {job_id!r}.")
        return FileResponse(file_of(studio, job, what), filename=title_of(studio, job, what))

    def of_project(
        project_id: str, what: str, runs: int = 0, measure: str = FIRST_MEASURE, cost: str = FIRST_COST
    ) -> Response:
        project, found = studio.project(project_id), [*evaluations(studio, project_id).values()]
        if not 0 <= runs < len(found) or what not in ("table.csv", "report.html"):
            raise InputError("There is nothing to compare yet.")
        comparison = compared(studio, project_id, found[runs], measure, cost)
        if what == "table.csv":
            content, kind = report.to_csv(comparison), "text/csv; charset=utf-8"
        else:
            content, kind = whole_report(studio, project_id, found[runs], comparison), "text/html; charset=utf-8"
        disposition = {"content-disposition": f'attachment; filename="{slug(project.name)}-{what}"'}
        return Response(content, media_type=kind, headers=disposition)

    app.add_exception_handler(InputError, lambda _, error: PlainTextResponse(f"{error}\n", 404))
    app.add_api_route("/studio/project/{project_id}/job/{job_id}/{what}", of_job, methods=["GET"], response_model=None)
    app.add_api_route("/studio/project/{project_id}/{what}", of_project, methods=["GET"], response_model=None)
