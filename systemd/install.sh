#!/usr/bin/env bash
# Installs the station as a systemd service from a folder of wheels, without a network.
#
#   install.sh WHEELHOUSE    install the version that the folder holds, check the configuration with it, switch to it
#   install.sh --rollback    switch back to the version that was in use before
#
# Each version has a virtual environment of its own; the symlink `current` chooses. Data (/var/lib/inspection-station)
# and configuration (/etc/inspection-station) are never changed: a first configuration is written where there is none.
# It may be run again at any time; a version that is installed already is only switched to.
set -euo pipefail

readonly NAME=inspection-station
readonly BASE=/opt/$NAME
readonly CONFIGURATION=/etc/$NAME/station.toml
readonly DATA=/var/lib/$NAME
readonly UNIT=/etc/systemd/system/$NAME.service
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly HERE

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

usage() {
    echo "usage: install.sh WHEELHOUSE | --rollback" >&2
    exit 2
}

version_at() { # the version that a symlink points to; empty without one
    local target
    target=$(readlink "$BASE/$1" 2>/dev/null) && basename "$target" || true
}

point() { # point LINK VERSION: replace a symlink in one step
    ln -sfn "versions/$2" "$BASE/$1.new"
    mv -T "$BASE/$1.new" "$BASE/$1"
}

as_service() { # as the service's user, so that what the check creates belongs to it
    (cd / && setpriv --reuid="$NAME" --regid="$NAME" --init-groups env -u CREDENTIALS_DIRECTORY "$@")
}

make_user() {
    getent group "$NAME" >/dev/null || groupadd --system "$NAME"
    getent passwd "$NAME" >/dev/null ||
        useradd --system --gid "$NAME" --home-dir "$DATA" --no-create-home --shell /usr/sbin/nologin "$NAME"
    # Cameras belong to this group.
    getent group video >/dev/null || groupadd --system video
    usermod --append --groups video "$NAME"
}

make_folders() {
    install -d -m 0755 "$BASE" "$BASE/versions" "/etc/$NAME"
    install -d -m 0750 -o "$NAME" -g "$NAME" "$DATA"
}

station_wheel() {
    local wheels=("$1"/inspection_station-*.whl)
    [[ -e ${wheels[0]} ]] || fail "$1 holds no inspection_station-*.whl; build one with: pip wheel -w $1 ."
    ((${#wheels[@]} == 1)) || fail "$1 holds more than one version: ${wheels[*]##*/}; keep the one to install"
    echo "${wheels[0]}"
}

build() { # build VERSION WHEEL WHEELHOUSE: the version's virtual environment, unless it is there and whole
    local folder=$BASE/versions/$1 sum
    sum=$(sha256sum <"$2" | cut -d' ' -f1)
    if [[ -e $folder/.complete ]]; then
        [[ $(<"$folder/.complete") == "$sum" ]] ||
            fail "version $1 is installed already, from another wheel; give the new one a version of its own"
        echo "version $1 is installed already"
        return
    fi
    # What an interrupted run left.
    rm -rf -- "$folder"
    python3 -m venv "$folder" || fail "python3 cannot make a virtual environment: apt-get install python3-venv"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
        --isolated --no-index --find-links "$3" "$2" || fail "the wheels in $3 are not complete for this machine"
    # The service cannot write here, and imports without .pyc files take three times as long.
    "$folder/bin/python" -m compileall -q "$folder/lib" >/dev/null || true
    echo "$sum" >"$folder/.complete"
    echo "installed version $1"
}

write_first_configuration() { # with the new version's own template
    [[ -e $CONFIGURATION ]] && return
    local fresh
    fresh=$(mktemp -d)
    "$1/bin/station" init "$fresh/station.toml" >/dev/null
    sed -i -e "s|^data_dir = .*|data_dir = \"$DATA\"|" -e "s|$fresh/station.toml|$CONFIGURATION|g" "$fresh/station.toml"
    install -m 0640 -g "$NAME" "$fresh/station.toml" "$CONFIGURATION"
    rm -rf -- "$fresh"
    echo "wrote $CONFIGURATION: it runs a simulated camera; edit it for yours"
}

check() { # the configuration, data folder and bundles, with the version that is to run
    as_service "$1/bin/station" check --offline --config "$CONFIGURATION" ||
        fail "version $(basename "$1") does not accept $CONFIGURATION; nothing was switched"
}

switch() { # switch VERSION
    local before
    before=$(version_at current)
    if [[ $before != "$1" ]]; then
        [[ -z $before ]] || point previous "$before"
        point current "$1"
        echo "switched from ${before:-nothing} to $1"
    fi
    prune
}

prune() { # versions beside the one in use and the one before it
    local folder name
    for folder in "$BASE"/versions/*; do
        name=${folder##*/}
        [[ $name == "$(version_at current)" || $name == "$(version_at previous)" ]] || rm -rf -- "$folder"
    done
}

start() {
    systemctl daemon-reload
    systemctl enable --quiet "$NAME.service"
    systemctl reset-failed "$NAME.service" 2>/dev/null || true
    # Type=notify: this returns when the station has said that it is ready.
    systemctl restart "$NAME.service" ||
        fail "the service did not start: journalctl -u $NAME; install.sh --rollback returns to the version before"
    echo "$NAME.service runs version $(version_at current)"
}

(($# == 1)) || usage
case $1 in
--help | -h) usage ;;
--rollback)
    ((EUID == 0)) || fail "must be run as root"
    version=$(version_at previous)
    [[ -n $version && -e $BASE/versions/$version/.complete ]] || fail "there is no version to go back to"
    check "$BASE/versions/$version"
    switch "$version"
    start
    ;;
-*) usage ;;
*)
    ((EUID == 0)) || fail "must be run as root"
    [[ -d $1 ]] || fail "$1 is not a folder of wheels"
    wheelhouse=$(cd "$1" && pwd)
    wheel=$(station_wheel "$wheelhouse")
    version=${wheel##*/inspection_station-}
    version=${version%%-*}
    make_user
    make_folders
    build "$version" "$wheel" "$wheelhouse"
    write_first_configuration "$BASE/versions/$version"
    check "$BASE/versions/$version"
    install -m 0644 "$HERE/$NAME.service" "$UNIT"
    switch "$version"
    start
    ;;
esac
