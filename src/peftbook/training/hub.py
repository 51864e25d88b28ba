"""Whether a model of the hub can be had, found out in seconds."""

from __future__ import annotations

import contextlib
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from peftbook.core import specs
from peftbook.core.errors import InputError
from peftbook.training.models import resolve

__all__ = ["check_reachable"]

HUB_SECONDS = 4.0


def check_reachable(model: specs.Model) -> None:
    """Raises InputError, within HUB_SECONDS, for a hub id that is not in the cache while its hub cannot be reached.

    The libraries that load it would try again for most of a minute.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    source, revision = resolve(model)
    if Path(source).is_dir() or constants.HF_HUB_OFFLINE:
        return
    if isinstance(try_to_load_from_cache(source, "config.json", revision=revision), str):
        return
    endpoint = urlsplit(constants.ENDPOINT)
    way = urlsplit(urllib.request.getproxies().get(endpoint.scheme, constants.ENDPOINT))
    if not is_reached(way.hostname or "", way.port or (80 if way.scheme == "http" else 443)):
        raise InputError(
            f"Model {model.name!r} is not on this machine, and {constants.ENDPOINT} cannot be reached: name a folder "
            "with the model, or ask again with a network."
        )


def is_reached(host: str, port: int) -> bool:
    """Whether a connection is made in time; finding the address of a name counts."""
    made: list[bool] = []

    def connect() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((host, port), HUB_SECONDS).close()
            made.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(HUB_SECONDS)
    return bool(made)
