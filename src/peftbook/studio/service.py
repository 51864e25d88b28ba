"""Service: a systemd unit that keeps a studio running, and what a proxy in front of it must do."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

UNIT = """\
# Keep as /etc/systemd/system/peftbook-studio.service, put a User= in it, then
#   systemctl daemon-reload && systemctl enable --now peftbook-studio
# A stop ends worker and jobs too; the next start goes on from their checkpoints.
[Unit]
Description=peftbook studio
After=network.target

[Service]
ExecStart={command}
Restart=always
RestartSec=2
TimeoutStopSec=30
UMask=0077
NoNewPrivileges=yes
PrivateTmp=yes
ProtectSystem=full
ProtectKernelTunables=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes

[Install]
WantedBy=multi-user.target

# Behind nginx, with TLS there. The name is let in by `--name`; uploads and events must not wait in the proxy.
#   location / {{
#     proxy_pass http://127.0.0.1:{port};
#     proxy_set_header Host $host;
#     proxy_set_header X-Forwarded-Proto $scheme;
#     proxy_set_header X-Forwarded-For $remote_addr;
#     proxy_request_buffering off;
#     proxy_buffering off;
#     client_max_body_size 0;
#   }}
# Under a prefix, which the proxy takes off: pages and API write no address that begins at the root.
#   location /peft/ {{ proxy_pass http://127.0.0.1:{port}/; … the same … }}
# Alive: GET /api/v1/health. Ready for work: GET /api/v1/ready, 200 or 503 with what is missing.
"""


def unit(home: Path, port: int, options: Sequence[str]) -> str:
    """The unit of a studio with this home and port. options: further words of the command."""
    words = [sys.executable, "-m", "peftbook", "studio", "--home", str(home.absolute()), "--port", str(port), *options]
    return UNIT.format(command=quoted(words), port=port)


def quoted(words: Sequence[str]) -> str:
    """A command line of systemd's: its own signs % and $ are doubled. Source: systemd.service(5), COMMAND LINES."""
    return " ".join(shlex.quote(word).replace("%", "%%").replace("$", "$$") for word in words)
