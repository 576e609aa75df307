#!/bin/sh
# What both containers start from: Debian's Python and the packages of requirements.lock, each checked against its hash.
# Run as root in the folder that is to hold the program.
set -eu
apt-get update -qq
# mpirun reaches other nodes by ssh
apt-get install -y -qq --no-install-recommends ca-certificates openssh-client python3 python3-venv >/dev/null
rm -rf /var/lib/apt/lists/*
python3 -m venv .venv
.venv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check uv==0.13.9
.venv/bin/uv pip install --quiet --require-hashes -r requirements.lock
