"""The commented configuration file that `station init` writes. Every line in it is checked by a test."""

TEMPLATE = """\
# Configuration of the inspection station.
# Check it with `station check --config {file}`; start with `station run --config {file}`.
# `station schema settings` lists every key. A line that is commented out shows the default or an example.
version = 1

[station]
# Second level of every MQTT topic: inspection/<name>/…
name = "station"
# Journal and state. A relative path is relative to this file.
data_dir = "station-data"
# How often `health` is published, seconds.
# health_interval_s = 5.0

[broker]
# true: an MQTT broker inside the station, on the loopback interface only.
embedded = true
# port = 1883
# An external broker instead (embedded = false):
# host = "broker.example"
# port = 8883
# username = "station"
# The password is kept in a file of its own, or in a systemd credential:
# password_file = "mqtt-password"
# password_credential = "mqtt-password"
# [broker.tls]
# ca_file = "ca.pem"
# certificate_file = "station.pem"
# key_file = "station.key"

[journal]
# The oldest acknowledged verdicts go first when the journal is full.
# max_bytes = 2_000_000_000
# max_age_days = 30.0
# What goes when even what was never delivered finds no room: least_valuable (ok, unknown, ng) or oldest.
# drop_first = "least_valuable"

[commands]
# What the station may be told over MQTT: replay, pause, resume, snapshot, set-threshold, reload-bundle, acknowledge,
# shelve. Who may publish it is for the broker's access rules to say.
# allow = ["replay"]
# replay_max_rows = 100_000
# replay_rate_hz = 500.0
# pause_max_s = 3600.0

[evidence]
# Pictures of ng, unknown and borderline frames and a sample of the ok ones, with their verdicts, below data_dir.
# enabled = true
# The oldest of the least valuable class goes first: ok, borderline, unknown, ng.
# max_bytes = 5_000_000_000
# min_free_bytes = 500_000_000
# ok_share = 0.001
# An ok frame whose score is this close to its threshold is borderline; 0 switches it off.
# borderline_margin = 0.1
# Each class can have bounds of its own:
# [evidence.unknown]
# max_bytes = 1_000_000_000

[model]
# The bundle that judges; default: the one shipped with the station (rendered circuit boards).
# bundle = "boards.bundle"
# Threads of the interpreter.
# threads = 1
# Overrides the bundle's threshold, 0 to 1.
# threshold = 0.5

# One table for each camera; its name stands in the MQTT topics.
[camera.line1]
# The simulated line. Replace it with one of the kinds below.
kind = "simulated"
rate_fps = 10.0

# Once it hangs where it will stay: station calibrate (README, "Calibrate"), then
# calibration = "calibration/line1"

# A camera at this computer:
# [camera.line1]
# kind = "v4l2"
# device = "/dev/v4l/by-id/usb-VENDOR_CAMERA-video-index0"
# width_px = 1280
# height_px = 960
# pixel_format = "GREY"
# rate_fps = 30.0
# controls = {{ exposure = 120, gain = 8 }}

# A network camera:
# [camera.line1]
# kind = "stream"
# url = "rtsp://192.0.2.10/stream1"

# A folder into which another program puts pictures:
# [camera.line1]
# kind = "folder"
# path = "incoming"
# mode = "watch"

# A video file:
# [camera.line1]
# kind = "video"
# path = "recording.avi"

# Sources of readings, and groups of channels that are watched together (README, "Early warning"):
# [sensors.plc1]
# kind = "modbus_tcp"
# host = "192.0.2.20"
# points.oven = {{ table = "input", address = 100, type = "float32" }}
# [process.oven]
# bundle = "oven.bundle"       # without one the channels are watched and kept
# channel.temperature = {{ source = "plc1", point = "oven", unit = "°C", minimum = 0.0, maximum = 400.0 }}
# alarm.hot = {{ watch = "temperature", above = 260.0, deadband = 5.0, on_delay_s = 3.0, priority = "high" }}

# A signal to a PLC for each part to throw out (README, "Reject output"):
# [reject.gate]
# kind = "modbus_tcp"
# host = "192.0.2.20"
# address = 3                  # coil
# delay_s = 1.2                # from the exposure to the ejector
# heartbeat = {{ address = 10 }}

# Alerts are on by themselves (README, "Alerts"); a table changes one:
# [alert.ng_rate]
# limit = 0.1
# [alert.ng_in_a_row]
# limit = 10

# Products, one of which runs at a time (README, "Products"); `station product change NAME` changes over:
# [product.bolt]
# number = 17
# bundle = "bolt.bundle"
# thresholds.scratch = 0.75
# ignore.stamp = {{ x_px = 300, y_px = 60, width_px = 80, height_px = 40 }}
# allow.few-pin-holes = {{ label = "pin-hole", max_area_px = 60.0, max_count = 3 }}

# Keys that every kind of camera takes:
# policy = "every"             # or "latest": older frames are skipped and counted
# expects = "continuous"       # or "triggered": silence is no fault
# read_deadline_s = 5.0
# late_after_ms = 1000.0
# rotate_degrees = 0
# region = {{ x_px = 0, y_px = 0, width_px = 640, height_px = 640 }}
# max_rate_fps = 50.0
# transport_delay_s = 0.0      # a part travels so long from the process to the camera
# threshold_in_alarm = 0.3     # where it is stricter, while a process group is in alarm
# Where the parts' own numbers come from: counter, file_name, code, mqtt, modbus_tcp, modbus_rtu (README, "Part ids"):
# part_id = {{ kind = "mqtt", topic = "line1/part", path = "id", time_path = "at", lead_s = 1.5, window_s = 0.1 }}
"""
