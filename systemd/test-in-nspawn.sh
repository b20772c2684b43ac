#!/usr/bin/env bash
# Installs the station with install.sh into a Debian 12 tree under a real systemd and looks at what the unit promises:
# frames judged with XNNPACK in the sandbox, watchdog, restart, no restart on exit 78, upgrade, rollback.
#
#   test-in-nspawn.sh [--tree DIR]
#
# Needs root, debootstrap and systemd-nspawn (apt-get install debootstrap systemd-container), a network for packages and
# wheels, and a python3 of the version that Debian 12 has (3.11; another one by PYTHON=…). It takes three to five
# minutes; --tree keeps Debian's tree in DIR and takes it from there the next time, which saves one of them. The packages
# come from where this machine's own come from (another mirror by MIRROR=…). The box itself has no network, and nothing
# of this machine is changed. Exit 75: this machine cannot make or boot such a box, and nothing was tested.
set -euo pipefail

PYTHON=${PYTHON:-python3}
SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly SOURCE PYTHON
readonly NAME=inspection-station
readonly WATCHDOG_S=6
readonly NOT_HERE=75 DEBOOTSTRAP_S=420

work=$(mktemp -d /var/tmp/station-box.XXXXXX)
readonly work box=$work/box
tree=$box
if [[ ${1:-} == --tree ]]; then tree=${2:?--tree needs a folder}; fi
readonly tree
nspawn=
leader=

say() { printf '%4ds  %s\n' "$SECONDS" "$*"; }

fail() {
    say "FAILED: $*"
    if [[ -n $leader ]]; then
        inside systemctl status --no-pager --full "$NAME" || true
        inside journalctl --no-pager -n 60 || true
    else
        tail -n 40 "$work/console.log" 2>/dev/null || true
    fi
    exit 1
}

not_here() { # this says something of the machine, not of the station
    say "cannot be tested here: $*"
    exit "$NOT_HERE"
}

finish() {
    # Its child is the box's init: with it everything in the box ends.
    [[ -z $leader ]] || kill -KILL "$leader" 2>/dev/null || true
    if [[ -n $nspawn ]]; then
        kill -KILL "$nspawn" 2>/dev/null || true
        wait "$nspawn" 2>/dev/null || true
    fi
    rm -rf -- "$work"
}
trap finish EXIT

inside() {
    nsenter --target "$leader" --mount --uts --ipc --net --pid --cgroup --root --wdns=/ -- \
        env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}

until_true() { # until_true SECONDS WHAT COMMAND…
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        ((SECONDS < deadline)) || fail "$what: not within its time"
        read -rt 0.3 <> <(:) || true
    done
}

signal() { inside sh -c "kill -$1 $2"; }
property() { inside systemctl show --property "$1" --value "$NAME"; }
main_pid() { property MainPID; }
installed() { basename "$(readlink "$box/opt/$NAME/$1")"; }

judged() { # verdicts with an outcome in the journal, which only a model that runs in XNNPACK gives
    inside "/opt/$NAME/current/bin/python" -c '
import sqlite3
with sqlite3.connect("file:/var/lib/inspection-station/journal.sqlite?mode=ro", uri=True) as journal:
    print(journal.execute("SELECT count(*) FROM journal WHERE outcome IN (?, ?)", ("ok", "ng")).fetchone()[0])'
}

more_judged_than() { (($(judged) > $1 + 10)); }
restarted_since() { # restarted_since PID: another process runs, and is ready
    local now
    now=$(main_pid)
    [[ $now != 0 && $now != "$1" && $(property SubState) == running ]]
}
judges() {
    local before
    before=$(judged)
    until_true 30 "frames are judged $1" more_judged_than "$before"
    say "frames are judged $1 ($(judged) in the journal; $(property StatusText))"
}
said() { inside journalctl --no-pager -u "$NAME" --output cat | grep -- "$1" >/dev/null; }

freeze_thread() { # stop one thread of the service, and nothing else, until the service has ended
    inside "/opt/$NAME/current/bin/python" - "$(main_pid)" "$1" <<'PYTHON' &
import ctypes, os, pathlib, sys, time
process = pathlib.Path("/proc", sys.argv[1])
thread = next(one for one in (process / "task").iterdir() if (one / "comm").read_text().strip() == sys.argv[2])
ptrace = ctypes.CDLL(None, use_errno=True).ptrace
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
TURNS = 15


def asked(request):
    if ptrace(request, int(thread.name), None, None):
        sys.exit(f"ptrace: error {ctypes.get_errno()}")


def waits_of_the_supervisor():
    lines = (process / "task" / process.name / "status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("voluntary")))


# A thread that is stopped while it has Python's lock stops all the others as well, and nobody can say which it was: they
# then wait without end, or ask for the lock a thousand times a second. The supervisor waits five times a second.
# Between two tries it must come round again: otherwise the watchdog would end a station that the tries had stopped.
for _ in range(20):
    asked(SEIZE)
    asked(INTERRUPT)
    os.waitpid(int(thread.name), WALL)
    before = waits_of_the_supervisor()
    time.sleep(1.5)
    if 2 <= waits_of_the_supervisor() - before <= 300:
        break
    asked(DETACH)
    before = waits_of_the_supervisor()
    while waits_of_the_supervisor() < before + TURNS:
        time.sleep(0.1)
else:
    sys.exit("the thread was never stopped alone")
while os.WIFSTOPPED(os.waitpid(int(thread.name), WALL)[1]):
    pass  # a stopped thread stays stopped; the wait ends when it is gone
PYTHON
}

# What the box is made of

((EUID == 0)) || { echo "test-in-nspawn.sh: must be run as root" >&2; exit 1; }
for program in debootstrap systemd-nspawn nsenter pgrep; do
    command -v "$program" >/dev/null || { echo "test-in-nspawn.sh: $program is missing" >&2; exit 1; }
done

if [[ ! -e $tree/.complete ]]; then
    mkdir -p "$tree"
    mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: bookworm' |
        sort | head -n 1)}
    timeout "$DEBOOTSTRAP_S" debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3-venv \
        bookworm "$tree" ${mirror:+"$mirror"} >"$work/debootstrap.log" 2>&1 ||
        { tail "$work/debootstrap.log"; not_here "Debian's tree could not be made from ${mirror:-the default mirror}"; }
    touch "$tree/.complete"
    say "Debian's tree is made"
fi
[[ $tree == "$box" ]] || cp -a --reflink=auto "$tree" "$box"
"$PYTHON" -c 'import sys; print("python3.%d" % sys.version_info[1])' >"$work/python"
[[ -e $box/usr/bin/$(<"$work/python") ]] ||
    not_here "the box has no $(<"$work/python"), which $PYTHON would build wheels for; set PYTHON"

wheel() { # wheel VERSION FOLDER [OPTION…]: the station's wheel with that version
    local version=$1 folder=$2
    shift 2
    rm -rf -- "$work/source"
    mkdir "$work/source"
    cp -r "$SOURCE"/{pyproject.toml,README.md,LICENSE,station,export} "$work/source"
    sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$work/source/station/__init__.py"
    "$work/venv/bin/pip" wheel --quiet --disable-pip-version-check -c "$SOURCE/.pins/constraints.txt" \
        --wheel-dir "$folder" "$@" "$work/source"
}

"$PYTHON" -m venv "$work/venv"
mkdir -p "$box/srv/first" "$box/srv/second"
wheel 1.0.0 "$box/srv/first" 2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }
ln "$box"/srv/first/*.whl "$box/srv/second/"
rm "$box"/srv/second/inspection_station-*.whl
wheel 2.0.0 "$box/srv/second" --no-deps 2>"$work/pip.log" || { cat "$work/pip.log"; exit 1; }
cp "$SOURCE"/systemd/{install.sh,uninstall.sh,$NAME.service} "$box/srv/"
say "two versions are built"

systemd-nspawn --directory="$box" --register=no --keep-unit --private-network --boot --console=pipe \
    >"$work/console.log" 2>&1 </dev/null &
nspawn=$!
is_up() {
    # The first child only sets the box up and hands over to the box's init.
    leader=$(pgrep --parent "$nspawn" | head -n 1)
    [[ -n $leader ]] && inside systemctl is-system-running 2>/dev/null | grep -E 'running|degraded' >/dev/null
}
for ((second = 0; second < 180; second++)); do
    ! is_up || break
    read -rt 1 <> <(:) || true
done
is_up || { tail -n 20 "$work/console.log"; not_here "systemd did not come up in the box"; }
say "the box runs $(inside systemctl --version | head -n 1)"

# Installation and the sandbox

inside /srv/install.sh /srv/first || fail "install.sh"
[[ $(property SubState) == running ]] || fail "the service does not run"
judges "after the installation"
said 'Created TensorFlow Lite XNNPACK delegate' || fail "XNNPACK was not loaded"
inside systemd-analyze verify "$NAME.service" || fail "systemd-analyze verify"
inside systemd-analyze security --no-pager --threshold=15 "$NAME.service" | tail -n 1 || fail "exposure above 1.5"
inside journalctl --no-pager -u "$NAME" -o json | grep '"STATION_CAMERA":"line1"' >/dev/null || fail "no camera field in the log"
pid=$(main_pid)
[[ $(inside stat -c %U "/proc/$pid") == "$NAME" ]] || fail "the user"
inside /srv/install.sh /srv/first >/dev/null || fail "install.sh a second time"
say "installed twice"

mkdir -p "$box/etc/credstore"
echo secret >"$box/etc/credstore/$NAME.mqtt-password"
inside systemctl restart "$NAME" || fail "start with a credential"
inside sh -c "cat /proc/$(main_pid)/root/run/credentials/$NAME.service/mqtt-password" | grep -x secret >/dev/null ||
    fail "the credential is not there"
say "the credential is there"

station=/opt/$NAME/current/bin/station
inside setpriv --reuid="$NAME" --regid="$NAME" --init-groups \
    "$station" doctor --config "/etc/$NAME/station.toml" >"$work/doctor" || fail "doctor: $(<"$work/doctor")"
grep -q 'XNNPACK: runs the shipped model' "$work/doctor" || fail "doctor does not see XNNPACK"
inside "$station" support-bundle --config "/etc/$NAME/station.toml" --out /srv/bundle.tar.gz >/dev/null ||
    fail "support-bundle"
tar --extract --to-stdout --file "$box/srv/bundle.tar.gz" support-bundle/log.txt >"$work/log.txt"
grep -q 'judges with' "$work/log.txt" || fail "the log is not in the support bundle"
[[ -z $(inside find "/var/lib/$NAME" ! -user "$NAME") ]] || fail "something in the data folder is not the service's"
say "doctor and support-bundle look at it"

# Watchdog and restart

mkdir -p "$box/etc/systemd/system/$NAME.service.d"
printf '[Service]\nWatchdogSec=%ss\n' "$WATCHDOG_S" >"$box/etc/systemd/system/$NAME.service.d/short.conf"
inside systemctl daemon-reload
inside systemctl restart "$NAME" || fail "restart with a short watchdog"
judges "with a watchdog of $WATCHDOG_S s"

pid=$(main_pid)
signal STOP "$pid"
until_true 40 "the watchdog ends a stopped process" restarted_since "$pid"
said 'Watchdog timeout' || fail "it was not the watchdog"
judges "after SIGSTOP of the process and the watchdog's abort"

for thread in recorder camera-line1; do
    pid=$(main_pid)
    freeze_thread "$thread"
    until_true 60 "the watchdog ends a station whose thread $thread stands still" restarted_since "$pid"
    said "no progress: .*${thread%%-*}" || fail "the log does not name the stage"
    judges "after the thread $thread stood still and the watchdog's abort"
done

pid=$(main_pid)
signal KILL "$pid"
until_true 15 "kill -9 is answered with a restart" restarted_since "$pid"
judges "after kill -9"
(($(inside sh -c "grep -l '[_]camera_child' /proc/[0-9]*/cmdline" | wc -l) == 1)) || fail "a camera's process was left behind"

# A wrong configuration

configuration=$box/etc/$NAME/station.toml
cp -a "$configuration" "$work/good.toml"
echo 'wrong = 1' >>"$configuration"
if inside /srv/install.sh /srv/second 2>"$work/refused"; then fail "a wrong configuration was switched to"; fi
grep -q 'nothing was switched' "$work/refused" || fail "the refusal does not say so"
[[ $(installed current) == 1.0.0 ]] || fail "it was switched all the same"
inside systemctl restart "$NAME" 2>/dev/null && fail "started with a wrong configuration"
[[ $(property ExecMainStatus) == 78 ]] || fail "exit status $(property ExecMainStatus), not 78"
restarts=$(property NRestarts)
read -rt 4 <> <(:) || true
[[ $(property ActiveState) == failed && $(property NRestarts) == "$restarts" ]] || fail "restarted after exit 78"
say "a wrong configuration: install.sh refuses it, the service ends with 78 and is not restarted"
cp -a "$work/good.toml" "$configuration"

# Upgrade and rollback

rows=$(judged)
sum=$(sha256sum <"$configuration")
inside /srv/install.sh /srv/second || fail "upgrade"
[[ $(installed current) == 2.0.0 && $(installed previous) == 1.0.0 ]] || fail "the links after the upgrade"
judges "after the upgrade"
inside /srv/install.sh --rollback || fail "rollback"
[[ $(installed current) == 1.0.0 && $(installed previous) == 2.0.0 ]] || fail "the links after the rollback"
judges "after the rollback"
(($(judged) > rows)) || fail "the journal was not kept"

inside /srv/uninstall.sh || fail "uninstall"
[[ ! -e $box/opt/$NAME && -e $box/var/lib/$NAME/journal.sqlite && $(sha256sum <"$configuration") == "$sum" ]] ||
    fail "uninstall.sh took too much or too little"
inside /srv/uninstall.sh >/dev/null || fail "uninstall a second time"
say "all seen"
