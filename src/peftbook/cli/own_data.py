"""Commands on a reader's own file: train, compare, studio, and a demonstration of them."""

from __future__ import annotations

import argparse
from pathlib import Path

from peftbook.cli.arguments import Add

HOME = "where the studio keeps its data (default: $PEFTBOOK_STUDIO or the user's data folder)"


def add_commands(add: Add) -> None:
    """The commands; their options are read from settings, which takes imports."""
    add("train", command_train, train_options)
    add("compare", command_compare, compare_options)
    add("studio", command_studio, studio_options)
    demo = add("demo", command_demo)
    demo.add_argument("--report", type=Path, metavar="FILE.html", help="also write the page with table and pictures")
    demo.add_argument("--home", type=Path, help="keep project and runs there, for the studio (default: nowhere)")


def train_options(train: argparse.ArgumentParser) -> None:
    """Of `train`."""
    from peftbook.studio.settings import Reading, Single

    on_file(train, Reading, Single)
    train.add_argument("--out", type=Path, required=True, help="a new folder for adapter, texts and measurements")


def compare_options(compare: argparse.ArgumentParser) -> None:
    """Of `compare`."""
    from peftbook.studio.settings import Judging, Reading, Settings

    on_file(compare, Reading, Settings, Judging)
    words = "one run, whole, as the studio prints it; again"
    compare.add_argument("--run", action="append", metavar="SPEC", help=words)
    compare.add_argument("--report", type=Path, metavar="FILE.html", help="also write one page that can be mailed")
    compare.add_argument("--csv", type=Path, metavar="FILE.csv", help="also write the table")
    compare.add_argument("--json", action="store_true", help="print numbers in full as JSON")


def studio_options(web: argparse.ArgumentParser) -> None:
    """Of `studio`."""
    from peftbook.options import add_options
    from peftbook.tasks.rows import Caps

    web.add_argument("--home", type=Path, help=HOME)
    web.add_argument("--host", default="127.0.0.1", help="to listen on; another than this machine's own needs a login")
    web.add_argument("--port", type=int, default=7861, help="to listen on (default 7861)")
    web.add_argument("--login-file", type=Path, metavar="FILE", help="let in only who is in it; --add-user writes it")
    web.add_argument("--add-user", metavar="NAME", help="ask for a password, keep its hash in the login file, and end")
    web.add_argument("--no-worker", action="store_true", help="start no worker: one runs elsewhere on the same home")
    add_options(web, Caps)


def on_file(parser: argparse.ArgumentParser, *models: type) -> None:
    """A file, how it is read, and what is trained on it."""
    from peftbook.options import add_options

    parser.add_argument("file", type=Path, help="CSV, TSV, JSONL or Parquet")
    for model in models:
        add_options(parser, model)
    parser.add_argument("--home", type=Path, help=HOME)


def command_train(args: argparse.Namespace) -> int:
    """Train one method on the reader's own file and score it; prints the measurements, saves adapter and texts."""
    from peftbook.studio.train import train_on_file

    return train_on_file(args)


def command_compare(args: argparse.Namespace) -> int:
    """Train several methods on the reader's own file and say which to take; the studio's jobs and table."""
    from peftbook.studio.compare import compare_file

    return compare_file(args)


def command_demo(args: argparse.Namespace) -> int:
    """Train a small model on 300 shipped tickets in two ways, score it and decide: what `compare` does, in a minute."""
    import shlex
    import tempfile

    from peftbook.cli import build_parser
    from peftbook.studio.demo import words_of_demo

    with tempfile.TemporaryDirectory() as folder:
        words = words_of_demo(args.home or Path(folder), args.report)
        print(f"peftbook {shlex.join(words[: words.index('--home')])}\n", flush=True)
        asked = build_parser().parse_args(words)
        return asked.handler(asked)


def command_studio(args: argparse.Namespace) -> int:
    """Serve the studio on this machine: upload data, train several methods, decide."""
    from peftbook.options import check_bounds, read_options
    from peftbook.studio.access import add_user
    from peftbook.studio.app import serve
    from peftbook.studio.database import default_home
    from peftbook.tasks.rows import Caps

    if args.add_user:
        path = args.login_file or (args.home or default_home()) / "login.json"
        add_user(path, args.add_user)
        print(f"{args.add_user} can log in; start the studio with --login-file {path}.")
        return 0
    caps = read_options(Caps, args)
    check_bounds(caps)
    return serve(
        args.home, host=args.host, port=args.port, login_file=args.login_file, worker=not args.no_worker, caps=caps
    )
