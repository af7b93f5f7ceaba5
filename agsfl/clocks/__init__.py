"""Time in seconds: devices and links, messages in bits, who is on when."""

from agsfl.clocks.availability import Availability, availability_of, is_on
from agsfl.clocks.durations import (
    CAUSES,
    EMPTY_ROUND,
    arrival,
    download,
    in_time,
    round_seconds,
    slowest,
    transfer,
)
from agsfl.clocks.messages import Message, rounded, volume
from agsfl.clocks.options import ClockOptions, require_consistent
from agsfl.clocks.sources import speeds_of
from agsfl.clocks.speeds import Speeds
from agsfl.clocks.together import k_together

__all__ = [
    "CAUSES",
    "EMPTY_ROUND",
    "Availability",
    "ClockOptions",
    "Message",
    "Speeds",
    "arrival",
    "availability_of",
    "download",
    "in_time",
    "is_on",
    "k_together",
    "require_consistent",
    "round_seconds",
    "rounded",
    "slowest",
    "speeds_of",
    "transfer",
    "volume",
]
