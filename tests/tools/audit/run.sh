#!/bin/sh
# `make audit`: Lighthouse (median of five) and axe over the built site, served compressed. Needs Node.js and Chromium.
# `make audit-studio`, which is `run.sh --studio`: the same over every view of the studio, on a phone (median of three).
set -eu
cd "$(dirname "$0")"
export PYTHONPATH="$PWD/..:$PWD/../.."  # of studio.py: it imports what the tests do
command -v node >/dev/null || { echo "make audit needs Node.js 20 or newer: install nodejs and npm." >&2; exit 2; }
CHROME=${PEFTBOOK_CHROMIUM:-$(command -v chromium || command -v chromium-browser || command -v google-chrome || true)}
[ -n "$CHROME" ] || { echo "make audit needs Chromium: apt-get install chromium, or set PEFTBOOK_CHROMIUM." >&2; exit 2; }
[ -d node_modules ] || npm install --no-audit --no-fund --silent
script=audit.mjs
[ "${1:-}" = --studio ] && { script=studio.mjs; shift; }
CHROME="$CHROME" exec node "$script" "$@"
