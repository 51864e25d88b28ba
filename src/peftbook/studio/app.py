"""The studio's web service: `peftbook studio`. It shows and asks; a worker process computes.

This process never imports torch or transformers, holds no state that a restart would lose, and opens no file whose name
came from outside: projects and jobs are looked up by their ids.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peftbook.core.errors import InputError, need
from peftbook.methods.from_peft import PeftMethod
from peftbook.studio.access import AccessMiddleware, host_of
from peftbook.studio.foreground import end_worker, ended_as_interrupted
from peftbook.studio.html import own_file
from peftbook.studio.sessions import SessionStore
from peftbook.studio.store import Studio, say_open, start_worker
from peftbook.studio.uploads import UploadStore
from peftbook.tasks.table import Caps

if TYPE_CHECKING:
    from fastapi import FastAPI

HERE = Path(__file__).resolve().parent
FONTS = (HERE / "fonts", HERE.parents[2] / "book" / "assets" / "fonts")  # of a wheel, of a checkout
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
KEEPER_SECONDS = 3.0
WARM_SECONDS = 2.0  # after which the first page is there
KEPT = {"cache-control": "public, max-age=31536000, immutable"}
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".woff2": "font/woff2"}


def serve(
    home: Path | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7861,
    worker: bool = True,
    caps: Caps | None = None,
    token: bool = True,
    names: Sequence[str] = (),
    proxy: str = "",
) -> int:
    """Serve until interrupted. Raises InputError for a host that others reach without a token, and a port in use.

    token: let in only who has a token, like the one in the address that is printed.  names: under which a proxy reaches
    it.  proxy: address whose `X-Forwarded-…` headers are believed; empty for none.
    """
    if not token and host not in ("127.0.0.1", "localhost", "::1"):
        raise InputError(f"Host {host!r} opens the studio to others: leave out --no-token, or leave out --host.")
    if odd := next((name for name in names if host_of(name) != name.lower()), None):
        raise InputError(f"The name {odd!r} is none: give it as it stands in the address, without a port.")
    for module in ("fastapi", "uvicorn", "python_multipart"):
        need(module, "The studio")
    os.umask(0o077)  # others of this machine read nothing
    studio = Studio(home)
    listening = listen(host, port)
    import uvicorn

    from peftbook.studio.connections import BACKLOG, LimitedProtocol, limit_connections
    from peftbook.studio.pages import warm

    PeftMethod.told_later = True  # by an assistant, which checks a plan
    sessions = SessionStore(studio.home) if token else None
    everywhere = host in ("0.0.0.0", "::", "")
    shown = socket.gethostname().lower() if everywhere else f"[{host}]" if ":" in host else host
    app = build_app(studio, caps or Caps(), sessions=sessions, hosts=(*LOOPBACK, shown, *names))
    address = f"http://{shown}:{listening.getsockname()[1]}/"
    stop = threading.Event()
    keeper = threading.Thread(target=keep_open, args=(studio.home, address, worker, stop), daemon=True)
    keeper.start()
    secret = f"?token={sessions.owner}" if sessions else ""
    print(f"The studio is at {address}{secret} and keeps its data in {studio.home}.", flush=True)
    if host not in (*LOOPBACK, "::1"):
        print("Others reach it without TLS: put a proxy before it (`peftbook studio --unit` shows one).", flush=True)
    if (studio.home / "login.json").is_file():
        words = "`peftbook studio token create NAME` makes a link for each person. Delete login.json to end this note."
        print(f"Names and passwords are gone: {words}", flush=True)
    limit_connections()
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        http=LimitedProtocol,
        backlog=BACKLOG,
        proxy_headers=bool(proxy),
        forwarded_allow_ips=proxy or None,
        timeout_graceful_shutdown=2,
    )
    warming = threading.Timer(WARM_SECONDS, warm)
    warming.daemon = True
    warming.start()
    try:
        with contextlib.suppress(KeyboardInterrupt), ended_as_interrupted():
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        stop.set()
        keeper.join()
        listening.close()
    if not end_worker(studio, waiting=False) and (left := sum(not job.ended for job in studio.jobs())):
        print(f"{left} runs go on without the studio: open it again to see them.", flush=True)
    return 0


def listen(host: str, port: int) -> Any:
    """A listening socket. Raises InputError where there can be none."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"Port {port} of {host!r} cannot be used ({error.strerror}): give another --port.") from None


def keep_open(home: Path, address: str, worker: bool, stop: threading.Event) -> None:
    """Record that the studio is open, which keeps a worker from ending; with `worker`, start one when none is alive."""
    while not stop.is_set():
        with contextlib.suppress(Exception):
            say_open(home, address)
            if worker:
                start_worker(home)
        stop.wait(KEEPER_SECONDS)
    (home / "open").unlink(missing_ok=True)


# --- routes ----------------------------------------------------------------------------------------------------


def build_app(
    studio: Studio, caps: Caps, *, sessions: SessionStore | None = None, hosts: tuple[str, ...] = LOOPBACK
) -> Callable[..., Any]:
    """The ASGI application: files, API and pages, behind the access middleware.

    sessions: who may come in; None lets in everybody on this machine.
    """
    os.environ.update(HF_HUB_OFFLINE=os.environ.get("HF_HUB_OFFLINE", "1"), HF_HUB_DISABLE_TELEMETRY="1")
    from fastapi import FastAPI

    from peftbook.studio.api import build_api
    from peftbook.studio.api.context import Context
    from peftbook.studio.pages import add_pages

    context = Context(studio, UploadStore(studio.home, caps))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    add_files(app)
    app.mount("/api/v1", build_api(context))
    add_pages(app, context)
    return AccessMiddleware(app, hosts, sessions)


def add_files(app: FastAPI) -> None:
    """Style sheet, script, icon and fonts: a fixed list, read once, kept by browsers."""
    from starlette.responses import Response
    from starlette.routing import Route

    found = {name: own_file(name)[0] for name in ("style.css", "page.js", "icon.svg")}
    fonts = next((folder for folder in FONTS if folder.is_dir()), HERE)
    found |= {f"fonts/{path.name}": path.read_bytes() for path in fonts.glob("*.woff2")}
    for name, content in found.items():
        answer = Response(content, media_type=KINDS[Path(name).suffix], headers=KEPT)
        app.router.routes.append(Route(f"/studio/{name}", answer, methods=["GET"]))
