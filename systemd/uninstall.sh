#!/usr/bin/env bash
# Removes the service and all installed versions. Data (/var/lib/inspection-station), configuration
# (/etc/inspection-station) and the service's user stay, so that a new installation goes on where this one ended.
set -euo pipefail

readonly NAME=inspection-station

(($# == 0)) || { echo "usage: uninstall.sh" >&2; exit 2; }
((EUID == 0)) || { echo "uninstall.sh: must be run as root" >&2; exit 1; }
if [[ -e /etc/systemd/system/$NAME.service ]]; then
    systemctl disable --now --quiet "$NAME.service"
    rm -f -- "/etc/systemd/system/$NAME.service"
    systemctl daemon-reload
    systemctl reset-failed "$NAME.service" 2>/dev/null || true
fi
rm -rf -- "/opt/$NAME"
echo "removed; data in /var/lib/$NAME and configuration in /etc/$NAME are kept"
