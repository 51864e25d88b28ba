"""Commands on a reader's own file: train, compare, studio, a demonstration of them, and export of what was trained."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from peftbook.cli.arguments import Add

if TYPE_CHECKING:
    from peftbook.studio.sessions import Access, SessionStore

HOME = "where the studio keeps its data (default: $PEFTBOOK_STUDIO or the user's data folder)"

# In float32, where batches go without padding: the fastest for so small a model on any processor.
DEMO = (
    "--input", "message", "--target", "team", "--group", "customer", "--models", "small-llama",
    "--methods", "untuned,lora,prompt", "--learning-rate", "lora=0.002", "--epochs", "5", "--test-examples", "30",
    "--max-new-tokens", "8", "--measure", "exact_match", "--dtype", "fp32", "--seeds", "1",
)  # fmt: skip


MAY = {"read": "only look", "write": "look and change"}


def add_commands(add: Add) -> None:
    """The commands; their options are read from settings, which takes imports."""
    add("train", command_train, train_options)
    add("compare", command_compare, compare_options)
    add("studio", command_studio, studio_options)
    demo = add("demo", command_demo)
    demo.add_argument("--report", type=Path, metavar="FILE.html", help="also write the page with table and pictures")
    demo.add_argument("--home", type=Path, help="keep project and runs there, for the studio (default: nowhere)")
    add("export", command_export, export_options)


def train_options(train: argparse.ArgumentParser) -> None:
    """Of `train`."""
    from peftbook.studio.settings import Guessed, Scoring, Single

    on_file(train, Guessed, Single, Scoring)
    train.add_argument("--out", type=Path, required=True, help="a new folder, which peft, transformers and vLLM load")
    words = "say what would be computed, how long it takes and how much memory, and end"
    train.add_argument("--dry-run", action="store_true", help=words)


def compare_options(compare: argparse.ArgumentParser) -> None:
    """Of `compare`."""
    from peftbook.studio.settings import Guessed, Judging, Settings

    on_file(compare, Guessed, Settings, Judging)
    words = "one run, whole, as the studio prints it; again"
    compare.add_argument("--run", action="append", metavar="SPEC", help=words)
    words = "say what would be computed, how long it takes and what its test rows can see, and end"
    compare.add_argument("--dry-run", action="store_true", help=words)
    compare.add_argument("--report", type=Path, metavar="FILE.html", help="also write one page that can be mailed")
    compare.add_argument("--csv", type=Path, metavar="FILE.csv", help="also write the table")
    compare.add_argument("--json", action="store_true", help="print numbers in full as JSON")


def studio_options(web: argparse.ArgumentParser) -> None:
    """Of `studio`."""
    from peftbook.core.options import add_options
    from peftbook.tasks.rows import Caps

    web.add_argument("--home", type=Path, help=HOME)
    web.add_argument("--host", default="127.0.0.1", help="to listen on, if not this machine's own alone")
    web.add_argument("--port", type=int, default=7861, help="to listen on (default 7861)")
    words = "let in everybody on this machine, as behind a proxy that asks; else by the token in the printed address"
    web.add_argument("--no-token", action="store_true", help=words)
    words = "a name under which a proxy reaches it, with its own TLS; once for each"
    web.add_argument("--name", action="append", default=[], metavar="HOST", help=words)
    web.add_argument("--backup", type=Path, metavar="FILE", help="write the whole studio into a new file, and end")
    web.add_argument("--restore", type=Path, metavar="FILE", help="make a new home of a backup, and end")
    words = "address of a proxy whose X-Forwarded headers are believed, for cookies of https alone (default: none)"
    web.add_argument("--proxy", default="", metavar="ADDRESS", help=words)
    web.add_argument("--unit", action="store_true", help="print a systemd unit with notes for a proxy, and end")
    web.add_argument("--no-worker", action="store_true", help="start no worker: one runs elsewhere on the same home")
    add_options(web, Caps)
    actions = web.add_subparsers(dest="action", metavar="token", parser_class=argparse.ArgumentParser)
    token = actions.add_parser("token", help="make links and tokens for others, list them, revoke them")
    tokens = token.add_subparsers(dest="token", required=True)
    create = tokens.add_parser("create", help="make a token for a person or a program, and print it once")
    create.add_argument("token_name", metavar="NAME", help="of the person or the program")
    create.add_argument("--read", action="store_true", help="it may look, and change nothing")
    revoke = tokens.add_parser("revoke", help="take a token back, with its sessions, at once")
    revoke.add_argument("token_name", metavar="NAME", help="of the token")
    for one in (create, revoke, tokens.add_parser("list", help="name, scope and age of each token")):
        one.add_argument("--home", type=Path, default=argparse.SUPPRESS, help=HOME)


def export_options(export: argparse.ArgumentParser) -> None:
    """Of `export`."""
    words = "a folder as peft's save_pretrained or train --out writes it (default: none, the model alone)"
    export.add_argument("adapter", type=Path, nargs="?", help=words)
    export.add_argument("--gguf", type=Path, metavar="FILE.gguf", required=True, help="a new file, for llama.cpp")
    words = "base and adapter as one model (default: the adapter alone, to be served beside a GGUF file of its base)"
    export.add_argument("--merged", action="store_true", help=words)
    words = "the base: an embedded model's name, a folder, or a hub id (default: what the adapter names)"
    export.add_argument("--model", help=words)
    words = "of the matrices (default fp16); a base is loaded in fp32, rounded once, and takes 4 bytes a parameter"
    export.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp16", help=words)
    words = "merge QLoRA into the 4-bit values that it was trained over (default: into the weights as they are)"
    export.add_argument("--rounded", choices=("nf4", "fp4"), default="", help=words)


def on_file(parser: argparse.ArgumentParser, *models: type) -> None:
    """A file, how it is read, and what is trained on it."""
    from peftbook.core.options import add_options

    parser.add_argument("file", type=Path, help="CSV, TSV, JSONL or Parquet")
    for model in models:
        add_options(parser, model)
    parser.add_argument("--home", type=Path, help=HOME)


def command_train(args: argparse.Namespace) -> int:
    """Train one method on the reader's own file; prints scores beside the untuned model's, saves a folder to load."""
    from peftbook.studio.train import train_on_file

    return train_on_file(args)


def command_compare(args: argparse.Namespace) -> int:
    """Train several methods on the reader's own file and say which to take; the studio's jobs and table."""
    from peftbook.studio.compare import compare_file

    return compare_file(args)


def command_demo(args: argparse.Namespace) -> int:
    """Train a small model on 300 shipped tickets in two ways, score it and decide: what `compare` does, in a minute."""
    import shlex
    import shutil

    from peftbook.cli import build_parser
    from peftbook.core.folders import cache_folder
    from peftbook.tasks.tickets import PATH

    file = PATH.relative_to(Path.cwd()) if PATH.is_relative_to(Path.cwd()) else PATH
    words = ["compare", str(file), *DEMO]
    print(f"peftbook {shlex.join(words)}\n", flush=True)
    home = args.home or cache_folder() / "demo"  # kept where it is interrupted, so that it goes on
    report = ["--report", str(args.report)] if args.report else []
    asked = build_parser().parse_args([*words, "--home", str(home), *report])
    status = asked.handler(asked)
    if status != 130 and args.home is None:
        shutil.rmtree(home, ignore_errors=True)
    return status


def command_export(args: argparse.Namespace) -> int:
    """Write an adapter, or its base with the adapter merged, as a file that llama.cpp serves; prints how."""
    import shlex

    from peftbook.core.base_models import model_named
    from peftbook.core.errors import InputError
    from peftbook.core.folders import check_free
    from peftbook.core.quiet import quieten_libraries
    from peftbook.views.export import gguf_adapter, gguf_model

    quieten_libraries()
    if args.adapter is None and (args.model is None or args.merged or args.rounded):
        raise InputError("Nothing to write: name an adapter's folder, or a model with --model and without --merged.")
    if args.rounded and not args.merged:
        raise InputError("--rounded says what an adapter is merged into: add --merged.")
    check_free(args.gguf)
    folder = None if args.adapter is None else gguf_adapter.adapter_folder(args.adapter)
    model = model_named(args.model) if args.model or folder is None else gguf_adapter.base_of(folder)
    if folder is None or args.merged:
        loaded = gguf_model.load_base(model) if folder is None else gguf_adapter.merge(folder, model, args.rounded)
        written, serve = gguf_model.write_model(loaded, args.gguf, args.dtype, model), f"-m {args.gguf}"
    else:
        written = gguf_adapter.write_adapter(folder, args.gguf, args.dtype, model)
        base = shlex.quote(args.model or model.name)
        serve = f"-m BASE.gguf --lora {args.gguf}\nBASE.gguf, once: peftbook export --model {base} --gguf BASE.gguf"
    print(f"{args.gguf}: {written.tensors} tensors, {written.file_bytes / 1e6:,.1f} MB\nllama-server {serve}")
    return 0


def command_studio(args: argparse.Namespace) -> int:
    """Serve the studio on this machine: upload data, train several methods, decide."""
    from peftbook.core.options import check_bounds, read_options
    from peftbook.studio.app import serve
    from peftbook.studio.database import default_home
    from peftbook.tasks.rows import Caps

    if args.backup or args.restore or args.unit or args.action:
        print(maintain(args, args.home or default_home()))
        return 0
    caps = read_options(Caps, args)
    check_bounds(caps)
    return serve(
        args.home,
        host=args.host,
        port=args.port,
        worker=not args.no_worker,
        caps=caps,
        token=not args.no_token,
        names=args.name,
        proxy=args.proxy,
    )


def maintain(args: argparse.Namespace, home: Path) -> str:
    """What is done beside serving, in words: a backup, a home made of one, tokens, a unit for systemd."""
    from peftbook.core.errors import InputError
    from peftbook.studio.backup import back_up, restore
    from peftbook.studio.service import unit
    from peftbook.studio.sessions import SessionStore
    from peftbook.studio.store import open_at

    if args.backup:
        size = back_up(home, args.backup) / 1e6
        return f"{args.backup}: {size:,.1f} MB. Whoever can read it can read all of the studio."
    if args.restore:
        restore(args.restore, home)
        return f"The studio is in {home}: start it with --home {home}."
    if args.action:
        if not (home / "studio.sqlite").is_file():
            raise InputError(f"There is no studio in {str(home)!r}: start it once, or name its folder with --home.")
        return manage_tokens(args, SessionStore(home), open_at(home))
    options = [word for name in args.name for word in ("--name", name)] + ["--proxy", args.proxy] * bool(args.proxy)
    return unit(home, args.port, options)


def manage_tokens(args: argparse.Namespace, sessions: SessionStore, address: str) -> str:
    """Create a token, revoke one, or list them, in words. address: of the studio if it is open."""
    from peftbook.studio.formats import ago

    if args.token == "create":
        scope: Access = "read" if args.read else "write"
        secret = sessions.create(args.token_name, scope)
        return (
            f"Token {args.token_name!r} may {MAY[scope]}. It is shown this once.\n"
            f"In a browser: {address or 'the address of the studio, then '}?token={secret}\n"
            f"In a program: Authorization: Bearer {secret}"
        )
    if args.token == "revoke":
        sessions.revoke(args.token_name)
        return f"Token {args.token_name!r} opens nothing any more."
    lines = [f"{one.name}: may {MAY[one.scope]}, made {ago(one.created)}" for one in sessions.tokens().values()]
    return "\n".join(lines) or "No token was created: the studio's owner alone comes in."
