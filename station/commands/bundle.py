"""`station bundle`: the library of bundles: look, install, activate, go back; beside a running station, or without one.

A running station does it itself, between two frames; without one the command does, and the next start follows it. Both
leave the same record in the journal.
"""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from station import wire
from station.adapters.bundle_library import BundleLibrary
from station.adapters.control_folder import ask, is_read
from station.adapters.system_clock import SystemClock
from station.bundle_file import Head, head_of, open_members, read_file
from station.bundle_index import SLOT, Index
from station.bundle_operations import BundleOperations
from station.commander import Commander
from station.commands.assembly import make_desk, open_journal
from station.commands.exit_codes import ExitCode
from station.commands.looks import as_owner
from station.errors import BundleError, ConfigurationError
from station.ids import uuid7
from station.manifest import open_bundle
from station.messages import Incoming, InstallResult, Origin, Outgoing, Response, SwitchResult, Verb
from station.process_bundle import open_process_bundle
from station.settings import Settings, blamed_on, load
from station.trust import ANYONE

ANSWER_WITHIN_S = 150.0
"""A bundle that is tried out for longer is not loaded anyway."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--config", type=Path, default=Path("station.toml"), help="configuration file")
    shared.add_argument("--json", action="store_true", help="print for machines")
    slotted = argparse.ArgumentParser(add_help=False)
    slotted.add_argument(
        "--slot",
        type=_slot,
        default="model",
        help="table whose bundle it stands in for: model, camera.NAME, product.NAME, process.GROUP (default: model)",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    action = actions.add_parser("inspect", parents=[shared], help="check a bundle, and say what it is")
    action.add_argument("bundle", help="a bundle file, or a bundle of the library (NAME, NAME:VERSION, sha256)")

    action = actions.add_parser("install", parents=[shared], help="check a bundle, try it out, put it in the library")
    action.add_argument("file", type=Path, help="bundle file")
    action.add_argument("--encrypt", action="store_true", help="keep it encrypted (bundles.encrypt: all of them)")

    actions.add_parser("list", parents=[shared], help="say what the library holds, and what is active where")

    action = actions.add_parser(
        "activate", parents=[shared, slotted], help="judge with a bundle from the next frame on"
    )
    action.add_argument("bundle", help="bundle of the library: NAME, NAME:VERSION or the beginning of its sha256")
    action.add_argument("--other-task", action="store_true", help="also where the former bundle has another task")

    actions.add_parser("rollback", parents=[shared, slotted], help="judge with what was active before")


def run(options: argparse.Namespace) -> ExitCode:
    """Do one of the actions.

    Raises:
        ConfigurationError: the configuration is wrong.
        ModelError: the bundle cannot be used.
        StorageError: the library or the journal cannot be read or written.
    """
    if options.action == "inspect" and Path(options.bundle).is_file() and not options.config.exists():
        # A file can be looked at where no station is.
        return _show(Path(options.bundle), None, options.json)
    settings = load(options.config, os.environ)
    folder = settings.station.data_dir
    with blamed_on(options.config), as_owner(folder):
        library = _library(settings)
        match options.action:
            case "inspect":
                return _show(options.bundle, settings, options.json)
            case "list":
                return _list(library.index(), json_form=options.json)
            case "install":
                # As long as nobody has looked at it, it is a file like any other.
                request: dict[str, object] = {"bundle": library.hand_in(read_file(options.file))}
                if options.encrypt:
                    request["encrypt"] = True
                response = _do(settings, Verb.INSTALL_BUNDLE, request)
            case "activate":
                request = {"bundle": options.bundle, "slot": options.slot}
                if options.other_task:
                    request["other_task"] = True
                response = _do(settings, Verb.ACTIVATE_BUNDLE, request)
            case _:
                response = _do(settings, Verb.ROLLBACK_BUNDLE, {"slot": options.slot})
    if not response.accepted:
        raise BundleError(response.reason or "refused")
    print(response.model_dump_json(indent=2) if options.json else _told(response))
    return ExitCode.OK


def _slot(text: str) -> str:
    if not SLOT.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no slot; allowed: model, camera.NAME, product.NAME, process.GROUP"
        )
    return text


def _library(settings: Settings) -> BundleLibrary:
    return BundleLibrary(settings.station.data_dir, settings.bundles.read_key(os.environ), settings.bundles.max_bytes)


def _do(settings: Settings, verb: Verb, request: Mapping[str, object]) -> Response:
    """Have the running station do it, or do it here where none runs."""
    folder = settings.station.data_dir
    if is_read(folder):
        return ask(folder, verb, dict(request), ANSWER_WITHIN_S)
    clock = SystemClock()
    answers: list[bytes] = []
    with open_journal(settings, clock) as journal:

        def record(message: Outgoing) -> None:
            journal.commit([message], ())

        desk = make_desk(settings, os.environ, clock, lambda *_: None, record)
        commander = Commander(
            station=settings.station.name,
            allow=frozenset(),
            handlers=BundleOperations(desk, lambda *_: {}).handlers(),
            clock=clock,
            record=record,
            copy=lambda *_: None,
        )
        topic = wire.request_topic(settings.station.name, verb)
        payload = wire.encode_request(str(uuid7(int(clock.now().timestamp() * 1e3))), request)
        commander.handle(Incoming(topic, payload, origin=Origin.LOCAL, reply=answers.append))
    return wire.decode(Response, answers[0])


def _told(response: Response) -> str:
    match response.result:
        case InstallResult() as one:
            signed = f"signed by {one.signed_by}" if one.signed_by else "no signature was checked"
            kept = ", kept encrypted" if one.sealed else ""
            return (
                f"installed {one.installed.name} {one.installed.version}, {one.task}, {signed}{kept}\n"
                f"sha256 {one.installed.sha256}\nstation bundle activate {one.installed.sha256[:12]} makes it judge"
            )
        case SwitchResult() as one:
            active, former = (
                f"{ref.name} {ref.version} ({ref.sha256[:12]})" if ref is not None else "what the configuration names"
                for ref in (one.active, one.former)
            )
            when = (
                "from its next start on" if one.at_next_start else f"on {', '.join(one.models)} from the next frame on"
            )
            return f"slot {one.slot}: {active} judges {when}; before: {former}"
        case _:
            return response.model_dump_json(indent=2)


def _list(index: Index, *, json_form: bool) -> ExitCode:
    if json_form:
        print(index.model_dump_json(indent=2))
        return ExitCode.OK
    active = {slot: index.active(slot) for slot in index.slots}
    for entry in sorted(index.entries.values(), key=lambda one: one.at):
        where = [slot for slot, sha256 in active.items() if sha256 == entry.sha256]
        notes = [
            f"{entry.task}",
            f"{entry.size_bytes / 1e6:.2f} MB",
            f"{entry.came} {entry.at:%Y-%m-%d}",
            f"signed by {entry.signed_by}" if entry.signed_by else "not signed",
            *(["encrypted"] if entry.sealed else []),
            *([f"active in {', '.join(where)}"] if where else []),
        ]
        print(f"{entry.sha256[:12]}  {entry.name} {entry.version}  {', '.join(notes)}")
    for name, slot in index.slots.items():
        back = f"; {len(slot.before)} to go back to" if slot.before else ""
        print(f"slot {name}: {index.shown(name)}{back}")
        if slot.taken_back is not None:
            print(f"slot {name}: {slot.taken_back.sha256[:12]} was taken back: {slot.taken_back.reason}")
    if not index.entries:
        print("the library is empty")
    return ExitCode.OK


def _show(bundle: str | Path, settings: Settings | None, json_form: bool) -> ExitCode:
    """Check a bundle as a station would, and say what it is."""
    trust = settings.trust.read() if settings is not None else ANYONE
    if Path(bundle).is_file():
        data, origin = read_file(Path(bundle)), str(bundle)
    elif settings is None:
        raise ConfigurationError(f"{bundle}: there is no such file")
    else:
        library = _library(settings)
        entry = library.index().find(str(bundle))
        data, origin = library.read(entry.sha256), entry.shown
    contents = open_members(data, origin, trust)
    head = head_of(contents, origin)
    found = _process(data, origin) if head.is_process else _pictures(data, origin)
    signatures = [one.key for one in contents.signatures]
    document = {
        "name": head.name,
        "version": head.version,
        "task": head.task,
        "sha256": contents.sha256,
        "size_bytes": len(data),
        "signatures": signatures,
        "signed_by": contents.signed_by,
        "members": {name: len(content) for name, content in contents.members.items()},
        **found,
    }
    if json_form:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return ExitCode.OK
    print(_text(head, document, signatures, contents.signed_by))
    return ExitCode.OK


def _text(head: Head, document: Mapping[str, Any], signatures: Sequence[str], signed_by: str | None) -> str:
    signed = "no"
    if signatures:
        signed = ", ".join(f"{key} ({'trusted' if key == signed_by else 'not checked'})" for key in signatures)
    rows = {
        "bundle": f"{head.name} {head.version}, task {head.task}",
        "sha256": document["sha256"],
        "size": f"{document['size_bytes']} bytes, {len(document['members'])} members, each as the manifest says",
        "signed": signed,
        "made": document["created_at"],
        "judges": document["judges"],
        "golden": document["golden"],
    }
    return "\n".join(f"{name:8}{value}" for name, value in rows.items())


def _pictures(data: bytes, origin: str) -> dict[str, str]:
    manifest = open_bundle(data, origin).manifest
    limits = manifest.thresholds
    return {
        "created_at": manifest.created_at.isoformat(),
        "judges": f"{', '.join(manifest.labels)}; from {limits.default:g} on; {limits.chosen_on or 'no counts'}",
        "golden": f"{len(manifest.golden)} pictures",
    }


def _process(data: bytes, origin: str) -> dict[str, str]:
    bundle = open_process_bundle(data, origin)
    names = ", ".join(channel.name for channel in bundle.manifest.channels)
    return {
        "created_at": bundle.manifest.created_at.isoformat(),
        "judges": f"{names}; every {bundle.manifest.step_s:g} s",
        "golden": f"a sequence of {len(bundle.risks)} steps",
    }
