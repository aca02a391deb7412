#!/bin/sh
# What the tests run besides Python: the commands of the README, an HSM in software, PostgreSQL and Redis servers of their own, an
# identity provider for Node.js, a browser with a passkey, a sandbox, and Go's transparency log, which must agree with ours. Called
# by make test.
set -eu
missing=""
for command in curl git openssl softhsm2-util; do
    command -v "$command" >/dev/null || missing="$missing ${command%-util}"
done
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing="$missing postgresql"
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v go >/dev/null || missing="$missing golang-go"
[ -d /usr/share/gocode/src/golang.org/x/mod/sumdb ] || missing="$missing golang-golang-x-mod-dev"
command -v node >/dev/null || missing="$missing nodejs"
command -v npm >/dev/null || missing="$missing npm"
command -v ssh-keygen >/dev/null || missing="$missing openssh-client"
command -v gpg >/dev/null || missing="$missing gnupg"
command -v chromium >/dev/null || missing="$missing chromium"
command -v bwrap >/dev/null || missing="$missing bubblewrap"
command -v chromedriver >/dev/null || missing="$missing chromium-driver"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing the missing Debian packages:$missing." >&2
    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y $missing >/dev/null
else
    echo "Missing:$missing. Run 'apt-get install$missing' as root, then make again." >&2
    exit 1
fi
