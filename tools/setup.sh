#!/bin/sh
# Make (or refresh) the virtual environment with the pinned dependencies. Called by make.
set -eu
: "${PYTHON:=python3}" "${VENV:=.venv}"

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "modelkeep needs Python 3.11 or newer as $PYTHON; set PYTHON=/path/to/python3 and run make again." >&2
    exit 1
}
if ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then  # Debian ships venv apart
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "Installing the missing Debian package python3-venv." >&2
        apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv >/dev/null
    else
        echo "Python's venv module is missing: run 'apt-get install python3-venv' as root, then make again." >&2
        exit 1
    fi
fi
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
echo "Installing the pinned dependencies into $VENV (once; a minute or two)." >&2
"$VENV/bin/python" -m pip install -q -c constraints.txt -e '.[lab,torch,parquet,mfa,hsm,vault,aws,s3,postgres,redis,scan,grpc,otel,dev]' 2>&1 | grep -v '^WARNING: Location' >&2 || true
# modelaudit, for the tests: apart, because it would be asked whenever a test publishes, and without the clients of clouds that it
# brings along, whose pins are not ours. What it needs besides is taken from the environment around it.
scanners="$VENV/scanners"
[ -x "$scanners/bin/python" ] || "$VENV/bin/python" -m venv --without-pip "$scanners"
inside=$("$scanners/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$inside/around.pth"
"$VENV/bin/python" -m pip install -q --upgrade --no-deps --target "$inside" -r tools/scanners.txt 2>&1 | grep -v '^WARNING: Location' >&2 || true
# The servers and clients that the tests and the benchmarks hold ours against (MLServer, Triton's client): apart, because their
# pins are not ours (protobuf 6, starlette 0.46).
peers="$VENV/peers"
[ -x "$peers/bin/python" ] || "$VENV/bin/python" -m venv --without-pip "$peers"
"$VENV/bin/python" -m pip --python "$peers/bin/python" install -q --no-deps -r tools/peers.txt 2>&1 | grep -v '^WARNING: Location' >&2 || true
# What the benchmarks of training security hold ours against (cleanlab, ART, dp-accounting): apart, because nothing else needs it;
# the rest is taken from the environment around it.
rivals="$VENV/rivals"
[ -x "$rivals/bin/python" ] || "$VENV/bin/python" -m venv --without-pip "$rivals"
beside=$("$rivals/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$beside/around.pth"
"$VENV/bin/python" -m pip install -q --upgrade --no-deps --target "$beside" -r tools/rivals.txt 2>&1 | grep -v '^WARNING: Location' >&2 || true
"$VENV/bin/python" -c 'import modelkeep, sklearn, pytest'
"$scanners/bin/python" -c 'import modelaudit'
"$peers/bin/python" -c 'import mlserver, tritonclient.http, geventhttpclient, onnxruntime'
"$rivals/bin/python" -c 'import art, cleanlab, dp_accounting'
