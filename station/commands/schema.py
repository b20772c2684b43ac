"""`station schema`: print the JSON Schemas of messages and settings, taken from the code."""

import argparse
import json

from pydantic import BaseModel

from station.alert_messages import Alert
from station.commands.exit_codes import ExitCode
from station.judged_with import EvidenceRecord
from station.manifest import Manifest
from station.messages import CameraState, Gap, Health, Response, Status, Verdict
from station.process_messages import Alarm, Risk
from station.requests import REQUESTS
from station.settings import Settings

SCHEMAS: dict[str, type[BaseModel]] = {
    "verdict": Verdict,
    "status": Status,
    "state": CameraState,
    "health": Health,
    "gap": Gap,
    "risk": Risk,
    "alarm": Alarm,
    "alert": Alert,
    "evidence": EvidenceRecord,
    "response": Response,
    **{f"request-{verb}": request for verb, request in REQUESTS.items()},
    "settings": Settings,
    "manifest": Manifest,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "what", nargs="*", type=_known, metavar="NAME", help=f"which ones: {', '.join(SCHEMAS)}; default: all"
    )


def run(options: argparse.Namespace) -> ExitCode:
    """Print one schema, or an object of several by name."""
    chosen = {name: SCHEMAS[name].model_json_schema() for name in options.what or SCHEMAS}
    print(json.dumps(chosen[options.what[0]] if len(options.what) == 1 else chosen, indent=2, ensure_ascii=False))
    return ExitCode.OK


def _known(name: str) -> str:
    if name not in SCHEMAS:
        raise argparse.ArgumentTypeError(f"{name!r} is not known; allowed: {', '.join(SCHEMAS)}")
    return name
