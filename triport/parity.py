"""Parity of one's own model: `with parity.recording(model, "a.safetensors")` around one's own step."""

from __future__ import annotations

from triport.parity_tests.tool.foreign.names import Names
from triport.parity_tests.tool.foreign.recording import Recorder, recording, round_eps
from triport.parity_tests.tool.foreign.weights import copy_weights

__all__ = ["Names", "Recorder", "copy_weights", "recording", "round_eps"]
