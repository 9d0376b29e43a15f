"""Imported by the fork server before anything else: it leaves signals to the dispatcher.

A terminal's Ctrl-C, `timeout` and service managers signal the whole process group. The server and
the workers (they inherit this) must outlive the dispatcher's orderly stop; when the dispatcher is
gone they end by themselves, because their pipes break.
"""

from __future__ import annotations

import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
