"""The backend as functions, numpy in and numpy out: what parity asks (see triport.core.backend.probe)."""

from __future__ import annotations

from triport.backends.paddle import distributed
from triport.backends.paddle.learner import Learner
from triport.core.backend.probe import Probe

probe = Probe(distributed.start, Learner)
forward, train, embed = probe.forward, probe.train, probe.embed
