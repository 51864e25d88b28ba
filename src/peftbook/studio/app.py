"""The studio's web service: `peftbook studio`. It shows and asks; a worker process computes.

This process never imports torch or transformers, holds no state that a restart would lose, and opens no file whose name
came from outside: projects and jobs are looked up by their ids.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from peftbook.errors import InputError, need
from peftbook.studio.access import COOKIE, LOGIN, SESSION_SECONDS, Door, Logins, Sessions, cookie
from peftbook.studio.drafts import Drafts
from peftbook.studio.machine import examine_apart
from peftbook.studio.markup import trouble
from peftbook.studio.store import Studio, say_open, start_worker
from peftbook.tasks.table import Caps

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

HERE = Path(__file__).resolve().parent
FONTS = (HERE / "fonts", HERE.parents[2] / "book" / "assets" / "fonts")  # of a wheel, of a checkout
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
KEEPER_SECONDS = 3.0
NICE = 10
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


def serve(
    home: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7861,
    login_file: Path | None = None,
    worker: bool = True,
    caps: Caps | None = None,
) -> int:
    """Serve until interrupted. Raises InputError for a host that others reach without a login, and a port in use."""
    logins = Logins(login_file) if login_file is not None else None
    if host not in ("127.0.0.1", "localhost", "::1") and logins is None:
        raise InputError(f"Host {host!r} opens the studio to others: give a --login-file, or leave out --host.")
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
    app = build_app(studio, caps or Caps(), logins=logins, hosts=(*LOOPBACK, host))
    shown = f"[{host}]" if ":" in host else host
    address = f"http://{shown}:{listening.getsockname()[1]}/"
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
    studio: Studio, caps: Caps, *, logins: Logins | None = None, hosts: tuple[str, ...] = LOOPBACK
) -> Callable[..., Any]:
    """The ASGI application: our routes, then Gradio's page, behind the door."""
    os.environ.update(
        GRADIO_ANALYTICS_ENABLED="False",
        HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1"),
        HF_HUB_DISABLE_TELEMETRY="1",
    )
    import gradio as gr
    from fastapi import FastAPI

    from peftbook.studio.pages import build_pages
    from peftbook.studio.pages.theme import HEAD, THEME

    drafts = Drafts(studio.home, caps)
    sessions = None if logins is None else Sessions(studio.home, logins)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        drafts.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    add_files(app)
    add_uploads(app, drafts)
    add_downloads(app, studio)
    if sessions is not None:
        add_login(app, sessions)
    page = build_pages(studio, drafts, caps, with_login=logins is not None)
    off = dict.fromkeys(("run_history", "show_error", "ssr_mode", "pwa", "enable_monitoring", "mcp_server"), False)
    app = gr.mount_gradio_app(app, page, "/", footer_links=[], max_file_size=1, theme=THEME, head=HEAD, **off)
    return Door(app, hosts, sessions)


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
        most = drafts.caps.bytes
        too_large = f"The file has more than {most:,} bytes, the cap: cut it, or start the studio with --max-bytes."
        announced = request.headers.get("content-length", "0")
        if announced.isdigit() and int(announced) > most:
            return JSONResponse({"error": too_large}, 413, headers={"connection": "close"})
        draft = drafts.new(plain_name(request.headers.get("x-filename", "")))
        seen = 0
        try:
            with draft.path.open("wb") as stream:
                async for block in request.stream():
                    seen += len(block)
                    if seen > most:
                        raise InputError(too_large)
                    stream.write(block)
        except (InputError, OSError) as error:
            drafts.drop(draft.id)
            words = str(error) if isinstance(error, InputError) else "The disk is full or cannot be written."
            return JSONResponse({"error": words}, 413, headers={"connection": "close"})
        except BaseException:
            drafts.drop(draft.id)
            raise
        return JSONResponse({"draft": draft.id})

    upload.__annotations__["request"] = Request  # FastAPI reads it where it cannot see this scope
    app.add_api_route("/studio/upload", upload, methods=["POST"], response_model=None)


def plain_name(value: str) -> str:
    """A file's name without folders and without what does not print: shown, never opened."""
    name = re.split(r"[/\\]", unquote(value))[-1]
    return "".join(letter for letter in name if letter.isprintable())[:200]


def add_downloads(app: FastAPI, studio: Studio) -> None:
    """What can be taken away, by the ids of project and job."""
    from fastapi import Response
    from fastapi.responses import FileResponse, PlainTextResponse

    from peftbook.decision import COSTS
    from peftbook.studio import artefacts
    from peftbook.studio.pages.decide import compared, evaluations, whole_report

    makers = {"adapter.zip": artefacts.adapter_zip, "outputs.csv": artefacts.outputs_csv}

    def of_job(project_id: str, job_id: str, what: str) -> Response:
        job = studio.job(job_id)
        if job.project != project_id:
            raise InputError(f"Project {project_id!r} has no job {job_id!r}.")
        name = f"{slug(studio.project(project_id).name)}-{slug(job.label)}-{what}"
        if what in makers:
            return FileResponse(makers[what](studio, job), filename=name)
        merged = studio.folder(project_id) / "downloads" / f"model-{job.key[:12]}.zip"
        if what == "model.zip" and merged.is_file():
            return FileResponse(merged, filename=name)
        raise InputError("This file has not been made yet: ask for it under Files.")

    def of_project(project_id: str, what: str, runs: int = 0, measure: str = "rougeL", cost: str = "") -> Response:
        from peftbook.studio import report

        project = studio.project(project_id)
        found = list(evaluations(studio, project_id))
        if not 0 <= runs < len(found) or what not in ("table.csv", "report.html"):
            raise InputError("There is nothing to compare yet.")
        comparison = compared(studio, project_id, found[runs], measure, cost or next(iter(COSTS)))
        if what == "table.csv":
            content, kind = report.to_csv(comparison), "text/csv; charset=utf-8"
        else:
            content, kind = whole_report(studio, project_id, found[runs], comparison), "text/html; charset=utf-8"
        disposition = {"content-disposition": f'attachment; filename="{slug(project.name)}-{what}"'}
        return Response(content, media_type=kind, headers=disposition)

    app.add_exception_handler(InputError, lambda _, error: PlainTextResponse(f"{error}\n", 404))
    app.add_api_route("/studio/project/{project_id}/job/{job_id}/{what}", of_job, methods=["GET"], response_model=None)
    app.add_api_route("/studio/project/{project_id}/{what}", of_project, methods=["GET"], response_model=None)


def slug(text: str) -> str:
    """A name that every file system takes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60] or "studio"


def add_login(app: FastAPI, sessions: Sessions) -> None:
    """A page with a form, and what it sends."""
    from fastapi import Request
    from fastapi.responses import HTMLResponse, RedirectResponse
    from starlette.concurrency import run_in_threadpool

    logins = sessions.logins

    async def form() -> Response:
        return HTMLResponse(login_page(""))

    async def log_in(request: Request) -> Response:
        fields = await request.form(max_files=0, max_fields=4)
        name, password = str(fields.get("name", ""))[:64], str(fields.get("password", ""))
        address = request.client.host if request.client else ""
        wait = logins.wait(f"name {name}", f"address {address}")
        if wait > 0:
            words = f"Too many wrong passwords: wait {max(1, round(wait / 60))} min, then try again."
            return HTMLResponse(login_page(words), 429, headers={"retry-after": str(int(wait) + 1)})
        if not await run_in_threadpool(logins.check, name, password, address):
            return HTMLResponse(login_page("Name or password is wrong: try again."), 401)
        answer = RedirectResponse("/", 303)
        answer.set_cookie(
            COOKIE,
            await run_in_threadpool(sessions.begin, name),
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return answer

    async def log_out(request: Request) -> Response:
        await run_in_threadpool(sessions.end, cookie(dict(request.headers)))
        answer = RedirectResponse(LOGIN, 303)
        answer.delete_cookie(COOKIE)
        return answer

    for handler in (log_in, log_out):
        handler.__annotations__["request"] = Request
    app.add_api_route(LOGIN, form, methods=["GET"], response_model=None)
    app.add_api_route(LOGIN, log_in, methods=["POST"], response_model=None)
    app.add_api_route("/studio/logout", log_out, methods=["POST"], response_model=None)


def login_page(words: str) -> str:
    """The form, without a script."""
    said = str(trouble(words))
    return (
        '<!doctype html><html lang="en" class="plain"><head><meta charset="utf-8">'
        "<title>Log in · peftbook studio</title>"
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="/studio/icon.svg">'
        '<link rel="stylesheet" href="/studio/style.css"></head><body class="login"><main><h1>peftbook studio</h1>'
        f'{said if words else ""}<form method="post" action="{LOGIN}"><label>Name <input name="name" '
        'autocomplete="username" required autofocus maxlength="64"></label><label>Password <input name="password" '
        'type="password" autocomplete="current-password" required></label>'
        '<button class="act act-main">Log in</button></form></main></body></html>'
    )
